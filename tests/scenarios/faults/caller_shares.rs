//! One caller: it uses a share of what waits and of what is undecided at a device, and other callers are served.
