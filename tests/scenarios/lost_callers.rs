//! Callers that send before `opened` and then vanish: the device is told at once, however much they sent and however they vanish.

use std::time::Duration;

use moorline_proto::control::{Cancel, CancelCode, Offer, ToDevice};
use moorline_tests::middlebox::Middlebox;
use moorline_tests::programs::Program;
use moorline_tests::wire::{Pipe, WireDevice, WireLeg, bearer};
use moorline_tests::world::World;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// Far below the deadline, which is when a caller is missed that nothing else shows.
const WITHIN: Duration = Duration::from_secs(10);
/// Below, at and beyond what the relay holds. What is more stays in the kernels: the end of the connection is behind it, and is seen once
/// the relay's kernel has it.
const SIZES: [usize; 3] = [65_535, 65_536, 100_000];
/// More than the relay's kernel takes. A reset overtakes it.
const LARGE: usize = 400_000;

/// How a caller vanishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Fin,
    CloseNotifyAndFin,
    Reset,
}

type Device = WireDevice<TlsStream<TcpStream>>;

/// A caller sends `size` bytes behind its 101 and vanishes; the device has not answered.
async fn vanishes<S: Pipe>(world: &World, device: &mut Device, pipe: S, tcp: impl Fn(&S) -> &TcpStream, size: usize, how: How) {
    let authorization = bearer(&world.token());
    let headers = [("authorization", authorization.as_str())];
    let mut caller =
        WireLeg::join(pipe, "localhost", "/v1/devices/lamp-1/connect/ssh", &headers).await.expect("nothing refuses the stream");
    let offer = device.offer().await;
    for piece in vec![7; size].chunks(1 << 16) {
        caller.send_bytes(piece.to_vec()).await;
    }
    let pipe = caller.socket.get_mut();
    match how {
        How::Fin => {}
        How::CloseNotifyAndFin => pipe.shutdown().await.expect("the relay is there"),
        How::Reset => tcp(pipe).set_zero_linger().expect("a socket of this machine"),
    }
    drop(caller);
    let Ok(message) = timeout(WITHIN, device.next()).await else { panic!("{size} bytes, then {how:?}: the device is not told") };
    let Ok(ToDevice::Cancel(cancel)) = message else { panic!("{message:?} instead of cancel") };
    assert_eq!((cancel.stream, cancel.code), (offer.stream, CancelCode::CallerGone), "{size} bytes, then {how:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_vanishes_behind_more_bytes_than_are_held_is_noticed_at_once() {
    let plain = "\n[[listeners]]\naddress = '127.0.0.1:0'\ntransport = 'plain'\n";
    let world = World::start_at(plain, "", "", |program| Command::new(program)).await;
    let mut device = world.wire_device("lamp-1").await;
    let all = SIZES.iter().flat_map(|&size| [How::Fin, How::CloseNotifyAndFin, How::Reset].map(|how| (size, how)));
    for (size, how) in all.chain([(LARGE, How::Reset)]) {
        let tls = world.dial().await;
        vanishes(&world, &mut device, tls, |tls| tls.get_ref().0, size, how).await;
        let tcp = TcpStream::connect(world.further[0]).await.expect("the plain listener");
        vanishes(&world, &mut device, tcp, |tcp| tcp, size, how).await;
    }
}

/// What is not read to find the end of a connection is not lost: the stream gets all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_stays_behind_more_bytes_than_are_held_gets_all_of_them_through() {
    let world = World::start().await;
    let mut device = world.wire_device("lamp-1").await;
    let authorization = bearer(&world.token());
    let headers = [("authorization", authorization.as_str())];
    let path = "/v1/devices/lamp-1/connect/ssh";
    let mut caller = WireLeg::join(world.dial().await, "localhost", path, &headers).await.expect("nothing refuses the stream");
    let offer = device.offer().await;
    let sending = async {
        for piece in vec![7; LARGE].chunks(1 << 16) {
            caller.send_bytes(piece.to_vec()).await;
        }
        caller.opened().await;
        caller
    };
    device.accept(offer.stream).await;
    let receiving = async {
        let mut leg = world.join(offer.url.as_str(), &offer.token).await;
        leg.opened().await;
        assert_eq!(leg.bytes(LARGE).await, vec![7; LARGE]);
        leg
    };
    drop(tokio::join!(sending, receiving));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_disconnects_before_opened_frees_the_device_at_once() {
    let world = World::start_with("ping = '300ms'\n").await;
    let (mut device, window) = (world.wire_device("lamp-1").await, Middlebox::start(&world).await);
    let forward = world.forward_by(window.address.port(), "lamp-1", &["ssh"]).await;
    window.callers_answered(1).await; // on the leg that it keeps ready
    let caller = TcpStream::connect(forward.local[0]).await.expect("the forward listens");
    let offer = device.offer().await;
    caller.set_zero_linger().expect("a socket of this machine");
    drop(caller);
    expect_caller_gone(&mut device, offer).await;

    let window = Middlebox::start(&world).await;
    let mut connect = world.client_by(window.address.port()).await;
    let connect = Program::start("moorline connect", connect.args(["connect", "lamp-1", "ssh"]));
    let offer = device.offer().await;
    window.callers_answered(1).await;
    connect.signal("INT");
    expect_caller_gone(&mut device, offer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_disconnects_after_early_data_frees_the_device_too() {
    let world = World::start_with("ping = '300ms'\n").await;
    let mut device = world.wire_device("lamp-1").await;
    for is_reset in [true, false] {
        let authorization = bearer(&world.token());
        let path = "/v1/devices/lamp-1/connect/ssh";
        let mut caller = WireLeg::join(world.dial().await, "localhost", path, &[("authorization", &authorization)]).await.unwrap();
        let offer = device.offer().await;
        // More than the relay buffers: it stops reading, and would not see a Close.
        caller.send_bytes(vec![7; 65_536]).await;
        caller.send_bytes(vec![7; 65_536]).await;
        if is_reset {
            caller.socket.get_ref().get_ref().0.set_zero_linger().expect("a socket of this machine");
        }
        drop(caller);
        expect_caller_gone(&mut device, offer).await;
    }
}

async fn expect_caller_gone(device: &mut WireDevice<TlsStream<TcpStream>>, offer: Offer) {
    let message = timeout(Duration::from_secs(20), device.next()).await.expect("long before the deadline");
    assert_eq!(message, Ok(ToDevice::Cancel(Cancel { stream: offer.stream, code: CancelCode::CallerGone })));
}
