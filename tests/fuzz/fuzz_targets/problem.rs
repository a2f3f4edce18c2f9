//! Fuzzes [`moorline_tests::decoders::problem`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| moorline_tests::decoders::problem(bytes));
