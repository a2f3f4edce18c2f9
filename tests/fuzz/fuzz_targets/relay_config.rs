//! Fuzzes [`moorline_tests::decoders::relay_config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| moorline_tests::decoders::relay_config(bytes));
