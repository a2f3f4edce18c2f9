//! How the program reports a failure: what happened, why, and what to do next.

use std::error::Error;
use std::fmt;

/// A failure of the program, with advice.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Box<dyn Error>,
    advice: &'static str,
}

impl Failure {
    /// An error, and what to do about it.
    pub(crate) fn new(error: impl Into<Box<dyn Error>>, advice: &'static str) -> Self {
        Self { error: error.into(), advice }
    }
}

impl fmt::Display for Failure {
    /// One line for the error, one for each cause, one for the advice.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "moorline-agent: {}", self.error)?;
        let mut source = self.error.source();
        while let Some(error) = source {
            write!(f, "\n  because: {}", error.to_string().trim_end().replace('\n', "\n    "))?;
            source = error.source();
        }
        write!(f, "\n  next: {}", self.advice)
    }
}

#[cfg(test)]
mod tests {
    use std::num::ParseIntError;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("max_streams is not a number")]
    struct Wrong(#[source] ParseIntError);

    #[test]
    fn a_failure_names_its_causes_and_the_next_step() {
        let failure = Failure::new(Wrong("x".parse::<u32>().unwrap_err()), "correct it");
        assert_eq!(
            failure.to_string(),
            "moorline-agent: max_streams is not a number\n  because: invalid digit found in string\n  next: correct it"
        );
    }
}
