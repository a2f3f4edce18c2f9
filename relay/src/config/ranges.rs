//! The ranges of times and limits: one line for each key.

use std::num::{NonZeroI64, NonZeroU32, NonZeroUsize};
use std::ops::RangeInclusive;
use std::time::Duration;

use moorline_proto::bounds::{DEADLINE_MAX_S, KEEP_MAX_MS, PING_MS, WAIT_MAX_S};

use crate::config::{ConfigError, file, wrong};
use crate::limits::{Limits, Times};

/// The longest time that may be set. Far below where arithmetic with clocks could overflow.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A time that must not be zero. So short only in tests.
const POSITIVE: RangeInclusive<Duration> = Duration::from_millis(10)..=LONGEST;

/// An interval of pings. Devices and callers clamp a longer one, and would then be taken for dead or ping too often.
const PING: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(PING_MS.1);
/// A deadline that is announced. Devices and callers clamp a longer one.
const DEADLINE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(DEADLINE_MAX_S);
/// The longest wait that is announced, which may be zero. Callers clamp a longer one.
const WAIT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(WAIT_MAX_S);

/// How long an idle leg is kept, as it is announced. Devices and callers clamp a longer one.
const IDLE_LEG: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(KEEP_MAX_MS);

/// Any number of things but none.
const COUNT: RangeInclusive<i64> = 1..=u32::MAX as i64;

/// Makes a struct whose fields are keys of a table, each checked against its range.
macro_rules! checked {
    ($check:ident, $written:ident, $type:ident { $($key:ident: $range:expr,)+ }) => {{
        let default = $type::default();
        $type { $($key: $check(stringify!($key), $written.$key.as_ref(), default.$key, $range)?,)+ }
    }};
}

pub(super) fn times(written: &file::Times) -> Result<Times, ConfigError> {
    let times = checked!(
        time,
        written,
        Times {
            deadline: POSITIVE,
            deadline_max: DEADLINE,
            wait_max: WAIT,
            ping: PING,
            heartbeat: PING,
            heartbeat_max: PING,
            half_closed_idle: POSITIVE,
            idle_leg: IDLE_LEG,
            closed_stream_retention: POSITIVE,
            tls_handshake_timeout: POSITIVE,
            http_write_timeout: POSITIVE,
            hello_timeout: POSITIVE,
            offer_ack_timeout: POSITIVE,
            prefer_wait_max: POSITIVE,
        }
    );
    at_most("deadline", times.deadline, "deadline_max", times.deadline_max)?;
    at_most("heartbeat", times.heartbeat, "heartbeat_max", times.heartbeat_max)?;
    Ok(times)
}

pub(super) fn limits(written: &file::Limits) -> Result<Limits, ConfigError> {
    let mut limits = checked!(
        count,
        written,
        Limits {
            streams_per_device: COUNT,
            streams: COUNT,
            streams_per_caller: COUNT,
            undecided_per_caller: COUNT,
            waiting_per_caller: COUNT,
            waiting_callers: COUNT,
            unauthenticated_connections: COUNT,
            unauthenticated_per_address: COUNT,
            connections: COUNT,
            connections_per_caller: COUNT,
        }
    );
    // Shares that are not written follow what they are shares of.
    if written.unauthenticated_per_address.is_none() {
        let quarter = NonZeroUsize::new(limits.unauthenticated_connections.get() / 4);
        limits.unauthenticated_per_address = quarter.unwrap_or(NonZeroUsize::MIN);
    }
    if written.streams_per_caller.is_none() {
        limits.streams_per_caller = share(limits.streams, 4);
    }
    if written.waiting_per_caller.is_none() {
        limits.waiting_per_caller = share(limits.waiting_callers, 10);
    }
    if written.undecided_per_caller.is_none() {
        limits.undecided_per_caller = NonZeroU32::new(limits.streams_per_device.get() / 2).unwrap_or(NonZeroU32::MIN);
    }
    Ok(limits)
}

/// One part of so many, at least one.
fn share(whole: NonZeroUsize, parts: usize) -> NonZeroU32 {
    u32::try_from(whole.get() / parts).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
}

fn time(key: &str, written: Option<&String>, default: Duration, range: RangeInclusive<Duration>) -> Result<Duration, ConfigError> {
    let Some(text) = written else { return Ok(default) };
    let wrong = |rule: String| wrong(format!("times.{key}"), format_args!("{text:?}"), rule);
    let time = humantime::parse_duration(text).map_err(|error| wrong(format!("not a time like 60s, 5m or 1h: {error}")))?;
    if range.contains(&time) {
        return Ok(time);
    }
    let (shortest, longest) = (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
    Err(wrong(format!("not from {shortest} to {longest}")))
}

fn at_most(key: &str, time: Duration, bound_key: &str, bound: Duration) -> Result<(), ConfigError> {
    if time <= bound {
        return Ok(());
    }
    let rule = format!("more than times.{bound_key}, which is {}", humantime::format_duration(bound));
    Err(wrong(format!("times.{key}"), humantime::format_duration(time), rule))
}

fn count<T: TryFrom<NonZeroI64>>(key: &str, written: Option<&i64>, default: T, range: RangeInclusive<i64>) -> Result<T, ConfigError> {
    let Some(&number) = written else { return Ok(default) };
    let count = NonZeroI64::new(number).filter(|_| range.contains(&number)).and_then(|number| T::try_from(number).ok());
    count.ok_or_else(|| wrong(format!("limits.{key}"), number, format_args!("not from {} to {}", range.start(), range.end())))
}
