//! Sizes, ranges and timeouts of the protocol. All are inclusive. Limits of one program alone are defined there.

use std::time::Duration;

/// Characters of a device id.
pub const DEVICE_ID_CHARS: usize = 128;
/// Characters of a service name.
pub const SERVICE_NAME_CHARS: usize = 32;
/// Characters of a node id, and of an issuer's short name.
pub const SHORT_NAME_CHARS: usize = 32;
/// Characters of a caller's subject.
pub const SUBJECT_CHARS: usize = 256;
/// Hex digits of an agent's `instance`, minimum.
pub const INSTANCE_MIN_CHARS: usize = 16;
/// Hex digits of an agent's `instance`, maximum.
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
/// Characters of a caller's reason.
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
/// Keys of one device in the registry. More than one, so that keys can be rotated without downtime.
pub const DEVICE_KEYS: usize = 3;

/// Bytes of one message on a control channel.
pub const CONTROL_MESSAGE_BYTES: usize = 64 * 1024;
/// Bytes of one binary message on a leg, and of one frame of it.
pub const LEG_BINARY_BYTES: usize = 64 * 1024;
/// Bytes of one text message from a side on a leg.
pub const LEG_TEXT_BYTES: usize = 4 * 1024;
/// Bytes of one text message from the relay on a leg: `opened` and `refused` carry a timeline and the caller.
pub const LEG_TEXT_FROM_RELAY_BYTES: usize = 16 * 1024;
/// Bytes of an `ask`, `accept` or `reject` on a leg that is used again.
pub const LEG_REQUEST_BYTES: usize = 16 * 1024;
/// Bytes of frames, headers included, that one message on a leg may take. The longest message in frames of one byte takes 448 KiB.
pub const LEG_MESSAGE_FRAME_BYTES: usize = 1 << 20;
/// Early data: bytes that the relay buffers for a leg before `opened`. The message that crosses the limit is still accepted.
pub const EARLY_DATA_BYTES: usize = 64 * 1024;
/// Idle legs of a device, and of a caller, that the relay keeps.
pub const IDLE_LEGS: u32 = 64;
/// Refusals in a row after which the relay closes a caller's leg.
pub const REFUSALS_IN_A_ROW: u32 = 16;
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

/// When a device reconnects after `go_away`, in milliseconds: minimum, maximum. These and the following are clamped when decoded.
pub const RECONNECT_IN_MS: (u64, u64) = (100, 300_000);
/// Interval of the pings that the relay sends or asks for, on control channels and legs, in milliseconds: minimum, maximum.
pub const PING_MS: (u64, u64) = (50, 3_600_000);
/// Interval of the pings that a device announces, in milliseconds: minimum, maximum.
pub const ANNOUNCED_MS: (u64, u64) = (5_000, 3_600_000);
/// Streams that a device may have at once, as the relay announces it: minimum, maximum.
pub const MAX_STREAMS: (u32, u32) = (1, 100_000);
/// Remaining time of a deadline, in milliseconds: maximum.
pub const EXPIRES_IN_MAX_MS: u64 = 86_400_000;
/// How long the relay keeps an idle leg, in milliseconds: maximum.
pub const KEEP_MAX_MS: u64 = 300_000;
/// Deadline that a caller asks for or a relay announces, in seconds: maximum.
pub const DEADLINE_MAX_S: u64 = 86_400;
/// Wait for an offline device that a caller asks for or a relay announces, in seconds: maximum.
pub const WAIT_MAX_S: u64 = 604_800;
/// A problem's `retry_after_s`: maximum.
pub const RETRY_AFTER_MAX_S: u64 = 86_400;
/// Times in tokens, in seconds since 1970: maximum, the end of the year 9999.
pub const EPOCH_MAX_S: u64 = 253_402_300_799;

/// Between the 101 of a control channel and the device's `hello`.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a device waits for `challenge`, and then for `welcome`.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(20);
/// A device that sends no frame of any kind within this time after an offer is considered dead.
pub const OFFER_ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// For any frame on an idle device leg after an offer on it, at least; four round trips of its last ping, if they are longer.
pub const LEG_ALIVE_MIN: Duration = Duration::from_secs(2);
/// The same, at most.
pub const LEG_ALIVE_MAX: Duration = Duration::from_secs(10);
/// Deadline for opening a stream where the caller sets none.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);
/// How long a device waits for its target to accept the connection.
pub const TARGET_TIMEOUT: Duration = Duration::from_secs(10);
/// `POST …/streams` is answered within this time (`Prefer: wait=N` may ask for less).
pub const PREFER_WAIT_MAX: Duration = Duration::from_secs(20);
/// The shortest heartbeat that a device may announce.
pub const HEARTBEAT_MIN: Duration = Duration::from_secs(5);
/// How often an end that does not read its leg sends an unsolicited Pong.
pub const UNSOLICITED_PONG_INTERVAL: Duration = Duration::from_secs(20);
/// How long an end that has ended its local side waits for the local kernel's acknowledgement before it sends `delivered`.
pub const ACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an end whose local side takes no more bytes goes on without passing on more of what it still says.
pub const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a Close other than 1000 may take to be sent and answered before the connection is reset.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
