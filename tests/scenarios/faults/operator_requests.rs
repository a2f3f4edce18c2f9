//! An operator whose connection ends while the relay works on the request.
