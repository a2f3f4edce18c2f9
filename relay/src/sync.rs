//! Locking for state that stays consistent at every step, so that a panic of one holder does not end the others.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex. Ignores poisoning: every critical section in the relay leaves its state consistent before it can panic.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_panic_of_one_lock_holder_does_not_affect_the_others() {
        let shared = Mutex::new(1);
        let holder = AssertUnwindSafe(|| {
            let _guard = lock(&shared);
            panic!("while the lock is held");
        });
        catch_unwind(holder).unwrap_err();
        assert_eq!(*lock(&shared), 1);
    }
}
