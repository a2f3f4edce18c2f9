//! Fuzzes [`moorline_tests::leg_sequences::run`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| moorline_tests::leg_sequences::run(bytes));
