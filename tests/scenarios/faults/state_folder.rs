//! Two relays on one state folder.
