//! `moorline connect`: a stream between standard input and output, for ssh's ProxyCommand and for pipes.

use std::io;
use std::time::Duration;

use moorline::Client;
use moorline::timeline::describe;
use tokio::time::timeout;
use tracing::debug;

use crate::cli::Connect;
use crate::credentials::Credentials;
use crate::exit::{Exit, Failure};
use crate::open_stream::{end_failure, open_failure, open_stream};
use crate::output::Output;
use crate::signals::{ShutdownSignal, Signals};
use crate::stdio::Stdio;

/// At every ordinary end ssh closes our input and sends SIGHUP at the same time: the last bytes get this long to arrive.
const HANGUP_GRACE: Duration = Duration::from_secs(2);

/// Connects standard input and output to the stream until both directions have ended.
///
/// # Errors
/// The stream could not be opened, or did not end cleanly.
pub(crate) async fn run(connect: &Connect, credentials: &Credentials, output: Output) -> Result<(), Failure> {
    let mut signals = Signals::catch()?;
    let client = credentials.client(&output)?;
    let mut carry = Box::pin(carry(connect, &client, output));
    let signal = tokio::select! {
        result = &mut carry => return result,
        signal = signals.next() => signal,
    };
    // Dropping the future resets the stream.
    let grace = match signal {
        ShutdownSignal::HangUp => HANGUP_GRACE,
        ShutdownSignal::Interrupt | ShutdownSignal::Terminate => return Err(Failure::silent()),
    };
    let result = tokio::select! {
        result = timeout(grace, carry) => result,
        _ = signals.next() => return Err(Failure::silent()),
    };
    // Nobody is left to read a message.
    if let Ok(Ok(())) = result { Ok(()) } else { Err(Failure::silent()) }
}

async fn carry(connect: &Connect, client: &Client, output: Output) -> Result<(), Failure> {
    let to = format!("{}/{}", connect.device, connect.service);
    let stream = open_stream(client.open(&connect.device, &connect.service), &connect.stream_args).await;
    let stream = stream.map_err(|error| open_failure(&format!("no stream to {to}"), &error))?;
    let timeline = describe(stream.timeline());
    debug!(stream = %stream.id(), timeline, "opened");
    if connect.stream_args.timeline {
        output.note(&format!("{to} through the relay: ok, {timeline}"));
    }

    let (stdio, written) = Stdio::take().map_err(|error| Failure::new(Exit::Failed, "no thread for standard input").caused_by(&error))?;
    let bridged = stream.bridge(stdio, std::future::pending()).await;
    // After a reset too: what came before it is written in order.
    let written = written.wait().await;
    debug!(to_device = bridged.to_leg_bytes, from_device = bridged.from_leg_bytes, ended = bridged.ended.name(), "ended");
    match written {
        Ok(()) => end_failure(&format!("the stream to {to}"), &bridged.ended),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::silent()),
        // The bridge only saw that its local side had closed.
        Err(error) => Err(Failure::new(Exit::Failed, "cannot write to standard output").caused_by(&error)),
    }
}
