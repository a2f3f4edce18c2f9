//! A finished stream whose side never answers its Close.
