//! Where a device is connected now: here, on another node, or nowhere.

pub mod local;

use moorline_proto::id::NodeId;

use crate::control::handle::DeviceHandle;

pub use local::{Directory, Listed};

/// Where a device is.
#[derive(Clone, Debug)]
pub enum Location {
    /// On this node.
    Here(DeviceHandle),
    /// On another node.
    Node(NodeId),
    /// It is not connected.
    Offline,
}

/// It cannot be found out where devices are. A directory of one node always knows; a shared one may be out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the directory is unavailable")]
pub struct Unavailable;
