//! Buffers for one read and the batch made of it. They belong to the runtime's threads, so that a silent leg owns none.

use std::cell::RefCell;

use moorline_proto::frame::Batch;

/// Bytes of one read: more than TLS returns at once.
const READ: usize = 64 * 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { input: Vec::new(), batch: Batch::new() }) };
}

/// The buffers of one thread.
pub(crate) struct Scratch {
    /// Bytes that were read.
    pub(crate) input: Vec<u8>,
    /// Frames for the other leg.
    pub(crate) batch: Batch,
}

/// Lends the thread's buffers, with an empty batch. Must not be called again inside `work`.
pub(crate) fn with<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.input.is_empty() {
            scratch.input = vec![0; READ];
        }
        scratch.batch.clear();
        work(scratch)
    })
}
