//! Sizes and times on the wire that every side respects. All are inclusive. Bounds that only one program has stay with it.

use std::time::Duration;

/// Characters of a device id.
pub const DEVICE_ID_CHARS: usize = 128;
/// Characters of a service name.
pub const SERVICE_NAME_CHARS: usize = 32;
/// Characters of a node id, and of an issuer's short name.
pub const SHORT_NAME_CHARS: usize = 32;
/// Characters of a caller's subject.
pub const SUBJECT_CHARS: usize = 256;
/// Hex digits of an agent's `instance`: from this many.
pub const INSTANCE_MIN_CHARS: usize = 16;
/// Hex digits of an agent's `instance`: to this many.
pub const INSTANCE_MAX_CHARS: usize = 64;
/// Characters of a feature's name.
pub const FEATURE_CHARS: usize = 32;
/// Features in one list.
pub const FEATURES: usize = 16;
/// Services in a `hello` or `services`.
pub const SERVICES: usize = 64;
/// Characters of a service's description.
pub const DESCRIPTION_CHARS: usize = 200;
/// Characters of a `detail` in a `reject`.
pub const DETAIL_CHARS: usize = 256;
/// Characters of the reason that a caller gives.
pub const REASON_CHARS: usize = 256;
/// Characters of short informative texts: agent version, host name, operating system.
pub const INFO_CHARS: usize = 256;
/// Characters of a URL or path that the relay hands out.
pub const URL_CHARS: usize = 2_048;
/// Characters of a device's proof, a compact JWS.
pub const PROOF_CHARS: usize = 16_384;
/// Groups of a caller, as shown to the device.
pub const GROUPS: usize = 64;
/// Characters of a group's name.
pub const GROUP_CHARS: usize = 128;
/// Bytes of opaque data for the far side, decoded.
pub const DATA_BYTES: usize = 4_096;
/// Characters of an `Idempotency-Key`, all of them visible ASCII.
pub const IDEMPOTENCY_KEY_CHARS: usize = 128;
/// Characters of the cursor of a page of devices, all of them letters, digits, `-`, `.`, `_` and `~`.
pub const CURSOR_CHARS: usize = 256;
/// Keys that the registry keeps for one device, so that keys rotate without a gap.
pub const DEVICE_KEYS: usize = 3;

/// Bytes of one message on a control channel.
pub const CONTROL_MESSAGE_BYTES: usize = 64 * 1024;
/// Bytes of one binary message on a leg, and of one frame.
pub const LEG_BINARY_BYTES: usize = 64 * 1024;
/// Bytes of one text message from a side on a leg.
pub const LEG_TEXT_BYTES: usize = 4 * 1024;
/// Bytes of one text message from the relay on a leg: `opened` and `refused` carry a timeline and the caller.
pub const LEG_TEXT_FROM_RELAY_BYTES: usize = 16 * 1024;
/// Bytes of frames that one message on a leg may take. The longest one takes 448 KiB where each frame carries a single byte.
pub const LEG_MESSAGE_FRAME_BYTES: usize = 1 << 20;
/// Bytes that the relay holds for a leg before `opened`; the message that crosses the mark is still taken.
pub const HELD_BEFORE_OPENED_BYTES: usize = 64 * 1024;
/// Bytes of the body of a request.
pub const REQUEST_BODY_BYTES: usize = 16 * 1024;

/// When a device dials again after `go_away`, in milliseconds: from, to.
pub const RECONNECT_IN_MS: (u64, u64) = (100, 300_000);

/// From the 101 of a control channel to the device's `hello`.
pub const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// A device waits this long for `challenge`, and then for `welcome`.
pub const WELCOME_WITHIN: Duration = Duration::from_secs(20);
/// A device that sends no frame at all for this long after an offer is dead.
pub const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// The handshake's deadline where the caller names none.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// What a device gives its target to answer, at most.
pub const TARGET_WITHIN: Duration = Duration::from_secs(10);
/// `POST …/streams` is answered after this long at the latest (`Prefer: wait=N` may ask for less).
pub const PREFER_WAIT: Duration = Duration::from_secs(20);
/// The shortest heartbeat that a device may announce.
pub const HEARTBEAT_MIN: Duration = Duration::from_secs(5);
/// An end that does not read its leg sends an unasked pong this often.
pub const UNASKED_PONG_EVERY: Duration = Duration::from_secs(20);
/// For a Close other than 1000 to be sent and answered; then the connection is reset.
pub const CLOSE_WITHIN: Duration = Duration::from_secs(5);
