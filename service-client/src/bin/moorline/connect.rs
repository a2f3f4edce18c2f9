//! `moorline connect`: a stream between standard input and output, for ssh's ProxyCommand and for pipes.

use std::future::pending;
use std::io;
use std::time::Duration;

use moorline::timeline::describe;
use moorline::{BridgeEnd, Stream};
use tokio::time::timeout;
use tracing::debug;

use crate::cli::Connect;
use crate::credentials::Credentials;
use crate::exit::{Exit, Failure};
use crate::open_stream::{end_failure, open_failure, open_stream};
use crate::output::Output;
use crate::signals::{ShutdownSignal, Signals};
use crate::ssh_disconnect;
use crate::stdio::{OutputDone, Stdio, has_input_ended};

/// Programs that end their side of a stream end this one by a signal at the same time: the last bytes get this long to arrive.
const LAST_BYTES_GRACE: Duration = Duration::from_secs(2);

/// Connects standard input and output to the stream until both directions have ended.
///
/// # Errors
/// The stream could not be opened, or did not end cleanly; or the signal that ended it.
pub(crate) async fn run(connect: &Connect, credentials: &Credentials, output: Output) -> Result<(), Failure> {
    let mut signals = Signals::catch().map_err(|error| Failure::no_signals(&error))?;
    let mut carry = Box::pin(carry(connect, credentials, output));
    let signal = tokio::select! {
        result = &mut carry => return result,
        signal = signals.next() => signal,
    };
    let is_ordinary_end = match signal {
        ShutdownSignal::HangUp => true,                 // ssh's, together with the end of standard input
        ShutdownSignal::Terminate => has_input_ended(), // socat's, once both of its sides have ended
        ShutdownSignal::Interrupt => false,
    };
    if !is_ordinary_end {
        return Err(Failure::interrupted(signal)); // dropping the future resets the stream
    }
    let result = tokio::select! {
        result = timeout(LAST_BYTES_GRACE, carry) => result,
        signal = signals.next() => return Err(Failure::interrupted(signal)),
    };
    // Nobody is left to read a message.
    if let Ok(Ok(())) = result { Ok(()) } else { Err(Failure::interrupted(signal)) }
}

async fn carry(connect: &Connect, credentials: &Credentials, output: Output) -> Result<(), Failure> {
    let stdio = Stdio::take().map_err(|error| Failure::new(Exit::Failed, "no thread for standard input").caused_by(&error));
    let (mut stdio, written) = stdio?;
    match open(connect, credentials, &mut stdio, &output).await {
        Ok(stream) => bridge(connect, stream, (stdio, written), &output).await,
        Err(failure) if connect.for_ssh => Err(tell_ssh(credentials.explain(failure), (stdio, written), &output).await),
        Err(failure) => Err(failure),
    }
}

/// Opens the stream. What standard input has to say is sent at once.
async fn open(connect: &Connect, credentials: &Credentials, stdio: &mut Stdio, output: &Output) -> Result<Stream, Failure> {
    let client = credentials.client(output)?.with_idle_legs(0); // it opens one stream
    let to = to(connect);
    let stream = open_stream(client.open(&connect.device, &connect.service), &connect.stream_args, stdio).await;
    let stream = stream.map_err(|error| open_failure(&format!("no stream to {to}"), &error))?;
    let timeline = describe(stream.timeline());
    debug!(stream = %stream.id(), timeline, "opened");
    if connect.stream_args.timeline {
        output.note(&format!("{to} through the relay: ok, {timeline}"));
    }
    Ok(stream)
}

async fn bridge(connect: &Connect, stream: Stream, stdio: (Stdio, OutputDone), output: &Output) -> Result<(), Failure> {
    let (mut stdio, written) = stdio;
    // Kept for what is to be told to ssh; else standard output is closed as soon as the stream is over.
    let (bridged, kept) = match connect.for_ssh {
        true => (stream.bridge(&mut stdio, pending()).await, Some(stdio)),
        false => (stream.bridge(stdio, pending()).await, None),
    };
    debug!(to_device = bridged.to_leg_bytes, from_device = bridged.from_leg_bytes, ended = bridged.ended.name(), "ended");
    if let (Some(stdio), BridgeEnd::Leg(_), 0) = (kept, &bridged.ended, bridged.from_leg_bytes)
        && let Err(failure) = end_failure(&the_stream(connect), &bridged.ended)
    {
        return Err(tell_ssh(failure, (stdio, written), output).await);
    }
    // After a reset too: what came before it is written in order.
    match written.wait().await {
        Ok(()) => end_failure(&the_stream(connect), &bridged.ended),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::silent()),
        // The bridge only saw that its local side had closed.
        Err(error) => Err(Failure::new(Exit::Failed, "cannot write to standard output").caused_by(&error)),
    }
}

/// Reports a failure, and tells it to ssh too. Returns it without the report.
async fn tell_ssh(mut failure: Failure, stdio: (Stdio, OutputDone), output: &Output) -> Failure {
    output.failure(&failure);
    if let Some(report) = failure.report.take() {
        ssh_disconnect::send(stdio, &report).await;
    }
    failure
}

fn to(connect: &Connect) -> String {
    format!("{}/{}", connect.device, connect.service)
}

fn the_stream(connect: &Connect) -> String {
    format!("the stream to {}", to(connect))
}
