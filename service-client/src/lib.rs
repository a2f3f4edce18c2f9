//! Opens streams to services of devices behind a Moorline relay, by device id and service name. A stream is as good as a TCP connection.
//!
//! ```no_run
//! use moorline::{Client, Profile};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::from_profile(Profile::load("profile.toml".as_ref())?)?;
//! let mut stream = client.open(&"lamp-1".parse()?, &"http".parse()?).await?;
//! stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
//! let mut page = String::new();
//! stream.read_to_string(&mut page).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A stream that ended in order leaves its connection to the next one, which then opens in one round trip; [`Client::keep_leg_ready`] prepares
//! one for the first. [`Open::send_from`] sends what a program has to say before the stream is open.
//!
//! Reading order: [`Client`] (a relay and a token), [`Open`] (requests a stream, and why it fails), [`Stream`] (the bytes, and how they
//! end), [`devices`] (the registry), [`profile`] (where programs keep their credentials). The program `moorline` is built on this library.

mod caller_token;
mod client;
pub mod devices;
mod early;
mod leg_request;
mod open;
mod open_error;
mod pool;
pub mod profile;
mod ready;
mod refusal;
mod retry;
mod stream;
mod stream_options;
pub mod timeline;
mod token_expiry;

#[cfg(test)]
mod early_tests;
#[cfg(test)]
mod open_tests;
#[cfg(test)]
mod pool_tests;
#[cfg(test)]
mod ready_tests;
#[cfg(test)]
mod retry_tests;
#[cfg(test)]
mod scripted_relay;
#[cfg(test)]
mod token_tests;

pub use client::Client;
pub use devices::DeviceError;
pub use moorline_proto::api::{Device, NegotiationState, StreamTicket};
pub use moorline_proto::id::{DeviceId, Feature, NameError, ServiceName, StreamId};
pub use moorline_proto::join::{ForeignUrl, Join, RelayUrl, RelayUrlError};
pub use moorline_proto::millis::Millis;
pub use moorline_proto::problem::{Problem, ProblemCode, Timeline};
pub use moorline_proto::proof::{PublicKey, PublicKeyError};
pub use moorline_proto::secret::Secret;
pub use moorline_proto::text::{Data, Text};
pub use moorline_transport::bridge::{BridgeEnd, Bridged, LocalSide, Plain};
pub use moorline_transport::dial::{DialError, Dialer, TrustError};
pub use moorline_transport::leg::EndReason;
pub use open::{JoinTicket, Open};
pub use open_error::OpenError;
pub use profile::Profile;
pub use stream::Stream;
pub use stream_options::{Key, KeyError};
pub use token_expiry::TokenExpiry;
