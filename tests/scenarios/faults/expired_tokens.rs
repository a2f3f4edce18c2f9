//! A caller's token that expires: what waits is refused, and what is open is cut where the operator wants that.
