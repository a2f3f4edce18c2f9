//! Unauthenticated connections from one address: they use a share of the capacity, and other addresses are served.
