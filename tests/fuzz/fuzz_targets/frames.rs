//! Fuzzes [`moorline_tests::decoders::frames`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| moorline_tests::decoders::frames(bytes));
