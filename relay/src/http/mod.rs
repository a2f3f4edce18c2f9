//! HTTP as the API needs it: the form of requests, bearer tokens, WebSocket upgrades, and refusals.

pub mod bearer;
pub mod body;
pub mod form;
pub mod problem;
pub mod upgrade;
