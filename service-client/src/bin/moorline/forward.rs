//! `moorline forward`: listens on local ports and opens one stream per connection.
//!
//! ```text
//!   browser ──▶ 127.0.0.1:8080 ── stream ══▶ relay ══▶ lamp-1/http
//! ```
//!
//! Owns: the connections of the listeners, and how both end. Does not own: where it listens ([`crate::listen`]), copying the bytes
//! ([`moorline::Stream::bridge`]).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use moorline::timeline::describe;
use moorline::{Client, DeviceId, LocalSide, OpenError, ServiceName, Stream, StreamId, Timeline};
use moorline_proto::timestamp::Timestamp;
use moorline_transport::descriptors;
use serde::Serialize;
use tokio::io::Interest;
use tokio::net::tcp::WriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::cli::{Forward, StreamArgs};
use crate::credentials::Credentials;
use crate::exit::{Exit, Failure};
use crate::listen::listen;
use crate::open_stream::{end_failure, is_routine, open_failure, open_stream};
use crate::output::Output;
use crate::signals::Signals;

/// Connections at once, over all ports. Further ones are reset at once, with a message.
const MAX_CONNECTIONS: usize = 1_024;
/// The pause after a failed accept. Without descriptors the next one would fail too.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);
/// Accept errors are reported once in this interval.
const ACCEPT_WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// How long before a token expires its user is told.
const EXPIRY_WARNING: Duration = Duration::from_secs(15 * 60);
/// What is logged of a local program that has gone.
const LOCAL_RESET: &str = "the local connection was reset before the stream was open";
/// For open streams to send their resets on shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// Forwards until a signal arrives, and ends by that signal once the streams were reset.
///
/// # Errors
/// No credentials, or an address that cannot be bound; and the signal.
pub(crate) async fn run(forward: Forward, credentials: &Credentials, output: Output) -> Result<Infallible, Failure> {
    descriptors::raise_limit();
    let mut signals = Signals::catch().map_err(|error| Failure::no_signals(&error))?;
    let client = credentials.client(&output)?.with_idle_legs(usize::try_from(forward.idle_legs).unwrap_or(usize::MAX));
    let mut listening = Vec::new();
    for pair in forward.pairs {
        listening.push((listen(pair.local).await?, pair.service));
    }
    let shared = Arc::new(Shared {
        client,
        credentials: credentials.clone(),
        device: forward.device,
        stream_args: forward.stream_args,
        json: forward.json,
        output,
        permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    });
    for (bound, service) in listening {
        let (listeners, addresses): (Vec<_>, Vec<_>) = bound.into_iter().unzip();
        announce(&shared, &addresses, &service)?;
        for listener in listeners {
            shared.tasks.spawn(accept(listener, service.clone(), Arc::clone(&shared)));
        }
    }
    shared.tasks.spawn(keep_leg_ready(Arc::clone(&shared)));
    shared.tasks.spawn(announce_expiry(Arc::clone(&shared), credentials.renewal_advice()));

    let signal = signals.next().await;
    shared.stop.cancel();
    shared.tasks.close();
    tokio::select! {
        // At the timeout the process exits, and the system resets the remaining connections.
        _ = timeout(SHUTDOWN_TIMEOUT, shared.tasks.wait()) => {}
        _ = signals.next() => shared.output.note("moorline: stopped at once, by a second signal"),
    }
    Err(Failure::interrupted(signal))
}

/// Shared by all connections.
struct Shared {
    client: Client,
    credentials: Credentials,
    device: DeviceId,
    stream_args: StreamArgs,
    json: bool,
    output: Output,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Reports where it listens, with the real port where port 0 was requested. `local` is the first address, for those who need one.
fn announce(shared: &Shared, addresses: &[SocketAddr], service: &ServiceName) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Line<'a> {
        local: Option<&'a SocketAddr>,
        addresses: &'a [SocketAddr],
        device: &'a DeviceId,
        service: &'a ServiceName,
    }
    let both: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    shared.output.note(&format!("forwarding {} to {}/{service}", both.join(" and "), shared.device));
    if !shared.json {
        return Ok(());
    }
    let line = Line { local: addresses.first(), addresses, device: &shared.device, service };
    shared.output.json(&line).map_err(|error| Failure::new(Exit::Failed, "cannot write to standard output").caused_by(&error))
}

/// Says for each token that it expires soon, unless another one is in its place by then.
async fn announce_expiry(shared: Arc<Shared>, next: String) {
    let mut expiry = shared.client.token_expiry(EXPIRY_WARNING);
    loop {
        let end = tokio::select! {
            end = expiry.next() => end,
            () = shared.stop.cancelled() => return,
        };
        let what = format!("the token's time ends at {}; connections that are open go on if the relay lets them", Timestamp::from(end));
        shared.output.failure(&Failure::new(Exit::Credentials, what).next(next.clone()));
    }
}

/// Keeps a connection to the relay ready for the next stream.
async fn keep_leg_ready(shared: Arc<Shared>) {
    tokio::select! {
        never = shared.client.keep_leg_ready() => match never {},
        () = shared.stop.cancelled() => {}
    }
}

/// Only accepts: everything else happens in the connection's own task.
async fn accept(listener: TcpListener, service: ServiceName, shared: Arc<Shared>) {
    let mut failed: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stop.cancelled() => return,
        };
        let (local, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if failed.replace(Instant::now()).is_none_or(|before| before.elapsed() > ACCEPT_WARNING_INTERVAL) {
                    let failure = Failure::new(Exit::Failed, "cannot accept connections for now").caused_by(&error);
                    shared.output.failure(&failure.next("raise this shell's limit of open files (`ulimit -n`), or close some connections"));
                }
                tokio::select! {
                    () = sleep(ACCEPT_BACKOFF) => continue,
                    () = shared.stop.cancelled() => return,
                }
            }
        };
        let Ok(permit) = Arc::clone(&shared.permits).try_acquire_owned() else {
            local.reset_on_drop();
            let failure = Failure::new(Exit::Failed, format!("{from} was reset: {MAX_CONNECTIONS} connections are open"));
            shared.output.failure(&failure.next("close some of them, or run a second `moorline forward` on another port"));
            continue;
        };
        shared.tasks.spawn(carry(local, from, service.clone(), permit, Arc::clone(&shared)));
    }
}

/// Carries one connection from accept to its end. `_permit` counts it among [`MAX_CONNECTIONS`].
async fn carry(mut local: TcpStream, from: SocketAddr, service: ServiceName, _permit: OwnedSemaphorePermit, shared: Arc<Shared>) {
    local.reset_on_drop(); // until a stream has ended cleanly, so that a cut connection never looks finished
    if let Err(error) = local.set_nodelay(true) {
        debug!(%from, %error, "cannot set TCP_NODELAY"); // slower, but correct
    }
    let (mut sent, received) = local.split();
    let opening = open_stream(shared.client.open(&shared.device, &service), &shared.stream_args, &mut sent);
    let opened = tokio::select! {
        biased; // an outcome that has arrived is used first, because hanging up is done on it
        opened = opening => opened,
        () = local_reset(&received) => return debug!(%from, %service, LOCAL_RESET),
        () = shared.stop.cancelled() => return,
    };
    let to = format!("{}/{service}", shared.device);
    let stream = match opened {
        Ok(stream) => stream,
        Err(OpenError::Source(error)) => return debug!(%from, %service, %error, LOCAL_RESET),
        Err(error) => {
            let failure = open_failure(&format!("{from} was reset, no stream to {to}"), &error);
            return shared.output.failure(&shared.credentials.explain(failure));
        }
    };
    debug!(%from, %to, stream = %stream.id(), timeline = describe(stream.timeline()), "opened");
    if shared.stream_args.timeline {
        report_timeline(&shared, from, &stream);
    }
    let bridged = stream.bridge(local, shared.stop.cancelled()).await;
    debug!(%from, %to, to_device = bridged.to_leg_bytes, from_device = bridged.from_leg_bytes, ended = bridged.ended.name(), "ended");
    if !is_routine(&bridged.ended)
        && let Err(failure) = end_failure(&format!("{from} to {to}"), &bridged.ended)
    {
        shared.output.failure(&failure);
    }
}

/// Reports how long opening took: as a sentence, or with `--json` as an object with the numbers.
fn report_timeline(shared: &Shared, from: SocketAddr, stream: &Stream) {
    #[derive(Serialize)]
    struct Line<'a> {
        from: SocketAddr,
        device: &'a DeviceId,
        service: &'a ServiceName,
        stream: StreamId,
        timeline: &'a Timeline,
    }
    let (device, service, timeline) = (&shared.device, stream.service(), stream.timeline());
    if !shared.json {
        return shared.output.note(&format!("{from} to {device}/{service} through the relay: ok, {}", describe(timeline)));
    }
    let line = Line { from, device, service, stream: stream.id(), timeline };
    if let Err(error) = shared.output.json(&line) {
        debug!(%error, "cannot write to standard output"); // its reader has gone, and the forwarding goes on
    }
}

/// Completes when the local program has reset its connection. One that only closed its sending side may still wait for the answer.
async fn local_reset(local: &WriteHalf<'_>) {
    match local.ready(Interest::ERROR).await {
        Ok(_) | Err(_) => (),
    }
}
