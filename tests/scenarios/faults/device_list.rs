//! The list of devices: who may read it, and what its cursor says.
