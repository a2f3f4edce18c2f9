//! Where a device is connected now: here, on another node, or nowhere.

pub mod local;

use moorline_proto::id::NodeId;

use crate::control::handle::DeviceHandle;

pub use local::{Directory, Listed};

/// Where a device is.
#[derive(Clone, Debug)]
pub enum Place {
    /// On this node.
    Here(DeviceHandle),
    /// On another node.
    Node(NodeId),
    /// It is not connected.
    Nowhere,
}
