//! The timeline of a stream in words that a person reads.

use moorline_proto::millis::Millis;
use moorline_proto::problem::Timeline;

/// How long opening took, and when each step was reached: `opened in 1.4 ms (authorized 0.1, offered 0.2, accepted 0.8)`.
///
/// The numbers are milliseconds from the request. A stream that was not opened has its steps alone.
pub fn describe(timeline: &Timeline) -> String {
    let Some(opened) = timeline.opened_ms else { return describe_steps(timeline).unwrap_or_default() };
    let steps: Vec<String> = steps(timeline).iter().map(|(step, at)| format!("{step} {at}")).collect();
    let dial = timeline.dial_ms.map(|span| format!("target dialled in {span}"));
    let details: Vec<String> = (!steps.is_empty()).then(|| steps.join(", ")).into_iter().chain(dial).collect();
    if details.is_empty() { format!("opened in {opened} ms") } else { format!("opened in {opened} ms ({})", details.join("; ")) }
}

/// The steps that a stream reached, the earliest first: `authorized 0.1 ms, offered 0.2 ms`. `None` if there are none.
pub fn describe_steps(timeline: &Timeline) -> Option<String> {
    let mut steps = steps(timeline);
    steps.extend(timeline.opened_ms.map(|at| ("opened", at)));
    let steps: Vec<String> = steps.iter().map(|(step, at)| format!("{step} {at} ms")).collect();
    (!steps.is_empty()).then(|| steps.join(", "))
}

/// The steps before `opened`, in the order in which they were reached.
fn steps(timeline: &Timeline) -> Vec<(&'static str, Millis)> {
    let mut steps: Vec<(&str, Millis)> = [
        ("authorized", timeline.authorized_ms),
        ("device found", timeline.found_ms),
        ("offered", timeline.offered_ms),
        ("device alive", timeline.device_alive_ms),
        ("accepted", timeline.accepted_ms),
        ("device joined", timeline.device_joined_ms),
        ("caller joined", timeline.caller_joined_ms),
    ]
    .into_iter()
    .filter_map(|(step, at)| Some((step, at?)))
    .collect();
    steps.sort_by_key(|(_, at)| *at); // stable: steps of one moment keep the order above
    steps
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn micros(micros: u64) -> Option<Millis> {
        Some(Millis::from_duration(Duration::from_micros(micros)))
    }

    #[test]
    fn an_opened_streams_timeline_is_one_sentence() {
        let timeline = Timeline {
            authorized_ms: micros(100),
            offered_ms: micros(210),
            accepted_ms: micros(800),
            caller_joined_ms: micros(150),
            dial_ms: micros(70),
            opened_ms: micros(1_400),
            ..Timeline::default()
        };
        assert_eq!(
            describe(&timeline),
            "opened in 1.4 ms (authorized 0.1, caller joined 0.15, offered 0.21, accepted 0.8; target dialled in 0.07)"
        );
        assert_eq!(describe(&Timeline { opened_ms: micros(12_000), ..Timeline::default() }), "opened in 12 ms");
    }

    #[test]
    fn a_stream_that_was_not_opened_has_its_steps_alone() {
        let timeline = Timeline { authorized_ms: micros(90), offered_ms: micros(4_000), ..Timeline::default() };
        assert_eq!(describe(&timeline), "authorized 0.09 ms, offered 4 ms");
        assert_eq!(describe_steps(&timeline).as_deref(), Some("authorized 0.09 ms, offered 4 ms"));
        assert_eq!((describe(&Timeline::default()), describe_steps(&Timeline::default())), (String::new(), None));
    }
}
