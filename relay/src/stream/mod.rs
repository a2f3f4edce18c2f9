//! Streams, from the request to the end record. One task owns each stream, and one phase holds all that it has at the moment.
//!
//! ```text
//!   setup ──▶ Waiting ──(device appears)──▶ Offered ──(accept)──▶ Accepted ──(both legs)──▶ Opened ──▶ record
//!                 ▲                            │  │                   │
//!                 └───(channel lost, time left)┘  └──▶ refused ◀──────┘
//! ```
//!
//! Owns: the order of these steps, deadlines, slots, leg tokens, idempotency keys, what each side receives. Does not own: who may ask
//! ([`crate::access`]), where devices are ([`crate::directory`]), the bytes ([`crate::splice`]).

mod actor;
mod carry;
pub mod handle;
mod idempotency;
pub mod idle_caller;
pub mod idle_device;
pub mod join;
pub mod leg_close;
mod leg_offer;
mod open;
mod recent;
pub mod record;
pub mod refusal;
pub mod registry;
pub mod request;
mod setup;
pub mod slots;
pub mod status;
mod step;
mod steps;

pub use handle::{Event, StreamHandle};
pub use open::open;
pub use registry::{Claim, Streams};
pub use request::{StreamRequest, Via};
pub use setup::record_denied;
