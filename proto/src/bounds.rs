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
pub const EARLY_DATA_BYTES: usize = 64 * 1024;
/// Bytes of the body of a request.
pub const REQUEST_BODY_BYTES: usize = 16 * 1024;

/// Characters of a problem's `type` and `code`; longer ones are cut.
pub const PROBLEM_WORD_CHARS: usize = 128;
/// Characters of a problem's texts for people; longer ones are cut.
pub const PROBLEM_TEXT_CHARS: usize = 1_024;
/// Characters of a token's `iss`.
pub const ISS_CHARS: usize = 2_048;
/// Characters of a token's `jti`.
pub const JTI_CHARS: usize = 256;
/// Devices on one page of their list.
pub const DEVICES_PER_PAGE: usize = 500;
/// Entries of each list in `about`.
pub const ABOUT_ENTRIES: usize = 64;

/// When a device dials again after `go_away`, in milliseconds: from, to. This and what follows is clamped where it is read.
pub const RECONNECT_IN_MS: (u64, u64) = (100, 300_000);
/// Interval of the pings that the relay sends or asks for, on control channels and legs, in milliseconds: from, to.
pub const PING_MS: (u64, u64) = (50, 3_600_000);
/// Interval of the pings that a device announces, in milliseconds: from, to.
pub const ANNOUNCED_MS: (u64, u64) = (5_000, 3_600_000);
/// Streams that a device may have at once, as the relay says: from, to.
pub const MAX_STREAMS: (u32, u32) = (1, 100_000);
/// What is left of a deadline, in milliseconds, at most.
pub const EXPIRES_IN_MAX_MS: u64 = 86_400_000;
/// A deadline that a caller asks for or a relay announces, in seconds, at most.
pub const DEADLINE_MAX_S: u64 = 86_400;
/// A wait for an offline device that a caller asks for or a relay announces, in seconds, at most.
pub const WAIT_MAX_S: u64 = 604_800;
/// A problem's `retry_after_s`, at most.
pub const RETRY_AFTER_MAX_S: u64 = 86_400;
/// Moments in tokens, in seconds since 1970, at most: the end of the year 9999.
pub const EPOCH_MAX_S: u64 = 253_402_300_799;

/// From the 101 of a control channel to the device's `hello`.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A device waits this long for `challenge`, and then for `welcome`.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(20);
/// A device that sends no frame at all for this long after an offer is dead.
pub const OFFER_ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// The handshake's deadline where the caller names none.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);
/// What a device gives its target to answer, at most.
pub const TARGET_TIMEOUT: Duration = Duration::from_secs(10);
/// `POST …/streams` is answered after this long at the latest (`Prefer: wait=N` may ask for less).
pub const PREFER_WAIT_MAX: Duration = Duration::from_secs(20);
/// The shortest heartbeat that a device may announce.
pub const HEARTBEAT_MIN: Duration = Duration::from_secs(5);
/// An end that does not read its leg sends an unasked pong this often.
pub const UNSOLICITED_PONG_INTERVAL: Duration = Duration::from_secs(20);
/// For a Close other than 1000 to be sent and answered; then the connection is reset.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
