//! Fuzzes [`moorline_tests::decoders::claims`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| moorline_tests::decoders::claims(bytes));
