//! Text from peers in the log, and a log that nobody reads.
