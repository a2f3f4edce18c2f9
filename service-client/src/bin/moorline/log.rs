//! The log on standard error, if `MOORLINE_LOG` is set. It shares the queue of [`Output`]: it never blocks, and stays in order with the
//! messages.

use tracing_subscriber::EnvFilter;

use crate::environment::Environment;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Starts the log if the environment asks for one.
///
/// # Errors
/// The filter is not valid.
pub(crate) fn start(environment: &Environment, output: &Output) -> Result<(), Failure> {
    let Some(filter) = &environment.log else { return Ok(()) };
    let filter = EnvFilter::try_new(filter.to_string_lossy()).map_err(|error| {
        Failure::new(Exit::Usage, "MOORLINE_LOG is not a filter like debug or moorline_transport=trace").caused_by(&error)
    })?;
    let messages = output.messages();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(messages).with_ansi(output.has_colour()).init();
    Ok(())
}
