//! HTTP: one file for each thing that a peer can ask for, and what all requests have in common (form, bearer tokens, upgrades, problems).

pub mod about;
pub mod bearer;
pub mod body;
pub mod connect;
pub mod control;
pub mod devices;
mod head_watch;
pub mod idle_legs;
mod legs;
pub mod negotiate;
mod operation;
pub mod problem;
pub mod request_form;
pub mod requests;
pub mod routes;
pub mod server;
pub mod stream_request;
pub mod streams;
pub mod upgrade;
mod write_timeout;
