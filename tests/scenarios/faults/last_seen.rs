//! The time when a device was last seen: written behind, and never waited for.
