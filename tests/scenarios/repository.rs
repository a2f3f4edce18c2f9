//! Rules for source files that no lint covers: size, module documentation, nothing unimplemented, no waiting by time in tests.

use moorline_tests::sources::{Source, blanked, items, sources};

/// Calls that wait for time to pass, or poll, instead of waiting for an event.
const WAITS: [&str; 5] = ["sleep(", "sleep_until(", "interval(", "interval_at(", "yield_now("];

/// Comments that begin the reason for a wait, in its line or in the one before: the passage of time is what the test is about, or a helper's
/// callers pause the clock.
const REASONS: [&str; 2] = ["// real time: ", "// paused clock: "];

#[test]
fn every_file_has_module_documentation_and_at_most_400_lines() {
    for Source { path, text, .. } in sources() {
        assert!(text.starts_with("//!"), "{} does not begin with module documentation", path.display());
        assert!(text.lines().count() <= 400, "{} has {} lines", path.display(), text.lines().count());
    }
}

#[test]
fn nothing_is_left_unimplemented() {
    for source in sources() {
        for word in ["todo!(", "unimplemented!(", "#[ignore"] {
            assert!(!source.code.contains(word), "{} has {word}", source.path.display());
        }
    }
}

/// Lines of test code that wait for time to pass without a reason. On a paused clock a wait is a step of the scenario and takes no time: tests
/// that pause it are left out, and so are helpers of files all of whose tests do.
fn waits(source: &Source) -> Vec<usize> {
    let (mut test, lines) = (source.test(), source.text.lines().collect::<Vec<_>>());
    let tests = test.matches("#[tokio::test").count();
    let paused = items(&test, "#[tokio::test(start_paused = true)]");
    if tests > 0 && tests == paused.len() {
        return Vec::new();
    }
    test = blanked(&test, &paused);
    let has_reason = |line: usize| {
        let reason = |line: &str| REASONS.iter().any(|begins| line.split_once(begins).is_some_and(|(_, reason)| reason.len() > 10));
        reason(lines[line]) || line.checked_sub(1).is_some_and(|before| reason(lines[before]))
    };
    let is_call = |line: &str| {
        WAITS.iter().any(|wait| {
            line.match_indices(wait).any(|(at, _)| !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_'))
        })
    };
    let waits = test.lines().enumerate().filter(|(number, line)| is_call(line) && !has_reason(*number));
    waits.map(|(number, _)| number + 1).collect()
}

#[test]
fn tests_wait_for_events() {
    let sources = sources();
    assert!(sources.iter().filter(|source| !source.test().trim().is_empty()).count() > 60, "test code of every crate was found");
    let found = sources.iter().flat_map(|source| waits(source).into_iter().map(|line| format!("{}:{line}", source.path.display())));
    let found: Vec<String> = found.collect();
    assert!(found.is_empty(), "wait for an event, pause the clock, or give the reason ({REASONS:?}):\n  {}", found.join("\n  "));
}

#[test]
fn a_wait_without_a_reason_is_found() {
    let source = |text: &str| Source { path: "tests/x.rs".into(), text: text.to_owned(), code: text.to_owned(), is_test: true };
    let real = "#[tokio::test]\nasync fn a() { sleep(S).await }\n#[tokio::test(start_paused = true)]\nasync fn b() { sleep(S).await }";
    assert_eq!(waits(&source(real)), [2]);
    let with_helper = format!("{real}\nasync fn c() {{ sleep(S).await }}");
    assert_eq!(waits(&source(&with_helper)), [2, 5], "a test in real time may call the helper");
    assert_eq!(waits(&source(&real.replace("#[tokio::test]", "#[tokio::test(start_paused = true)]"))), Vec::<usize>::new());
    let helper = "fn a() {\n    // real time: the pause is the subject\n    sleep_until(x);\n    oversleep(1); tokio::time::sleep(y)\n}";
    assert_eq!(waits(&source(helper)), [4]);
}
