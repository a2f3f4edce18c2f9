//! A device's key that is replaced: neither its channel nor its streams survive.
