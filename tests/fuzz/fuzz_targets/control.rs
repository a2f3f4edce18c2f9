//! Fuzzes [`moorline_tests::decoders::control`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| moorline_tests::decoders::control(bytes));
