//! Pipelined requests whose answers are never read.
