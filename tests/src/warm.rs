//! Legs that are used again: a world with a device, a caller's leg and a device's leg that are idle, and one stream after the other on them.

use moorline_proto::reuse::LegOffer;
use serde_json::json;
use tokio::io::DuplexStream;

use crate::memory::{INSTANCE, MemoryWorld};
use crate::wire::{LegEvent, Refusal, WireDevice, WireLeg, bearer};

/// The header that asks for a leg that is used again.
pub const REUSE_LEG: (&str, &str) = ("moorline-leg", "reuse");

/// A scripted leg in memory.
pub type Leg = WireLeg<DuplexStream>;

/// A device that knows of idle legs, and an idle leg of each side.
#[derive(Debug)]
pub struct WarmWorld {
    /// The relay.
    pub world: MemoryWorld,
    /// The control channel of `lamp-1`.
    pub device: WireDevice<DuplexStream>,
    /// The caller's leg.
    pub caller: Leg,
    /// The device's leg.
    pub leg: Leg,
}

impl WarmWorld {
    /// Starts everything, with the default configuration.
    pub async fn start() -> Self {
        Self::of(MemoryWorld::start().await).await
    }

    /// In this world.
    pub async fn of(world: MemoryWorld) -> Self {
        let device = warm_device(&world, INSTANCE).await;
        let (mut caller, mut leg) = (idle_caller(&world).await, idle_leg(&world, &device).await);
        assert!(caller.is_reusable && leg.is_reusable, "the 101 grants it");
        assert_eq!((caller.idle().await, leg.idle().await), (300_000, 300_000));
        Self { world, device, caller, leg }
    }

    /// Opens a stream on the two legs.
    pub async fn open(&mut self) -> LegOffer {
        open(&mut self.caller, &mut self.leg).await
    }

    /// Ends the open stream on the two legs, which are idle then.
    pub async fn finish(&mut self) {
        finish(&mut self.caller, &mut self.leg).await;
    }
}

/// The device `lamp-1` with this instance, which knows of idle legs.
pub async fn warm_device(world: &MemoryWorld, instance: &str) -> WireDevice<DuplexStream> {
    world.device_knowing("lamp-1", instance, &["ssh", "http"], &["reuse"]).await.expect("the device is authenticated")
}

/// A caller's leg that was opened idle. `idle` is still to be received.
pub async fn idle_caller(world: &MemoryWorld) -> Leg {
    open_idle(world, "/v1/connect", &bearer(&world.token())).await.expect("the token is good")
}

/// A device's leg that was opened idle. `idle` is still to be received.
pub async fn idle_leg(world: &MemoryWorld, device: &WireDevice<DuplexStream>) -> Leg {
    let warm = device.welcome.warm.as_ref().expect("welcome says how to open idle legs");
    open_idle(world, warm.url.as_str(), &bearer(&warm.token)).await.expect("the token is good")
}

/// Opens an idle leg at an address.
///
/// # Errors
/// The relay's refusal.
pub async fn open_idle(world: &MemoryWorld, path: &str, authorization: &str) -> Result<Leg, Refusal> {
    WireLeg::join(world.dial(), crate::memory::HOST, path, &[("authorization", authorization), REUSE_LEG]).await
}

/// Opens a stream to `ssh` of `lamp-1` on two idle legs.
pub async fn open(caller: &mut Leg, leg: &mut Leg) -> LegOffer {
    caller.ask("lamp-1", "ssh").await;
    let offer = leg.offer().await;
    leg.accept(offer.stream).await;
    assert_eq!(caller.opened().await.stream, offer.stream);
    offer
}

/// Ends an open stream, with `end` and `delivered` each way, and receives what either side then gets.
pub async fn finish(caller: &mut Leg, leg: &mut Leg) {
    end_both(caller, leg).await;
    caller.idle().await;
    leg.idle().await;
}

/// Sends `end` and `delivered` on both legs of an open stream, and receives those of the far side.
pub async fn end_both(caller: &mut Leg, leg: &mut Leg) {
    caller.end().await;
    leg.end().await;
    for side in [&mut *caller, &mut *leg] {
        assert_eq!(side.next().await, LegEvent::End);
        side.delivered().await;
    }
    for side in [caller, leg] {
        assert_eq!(side.next().await, LegEvent::Delivered);
    }
}

/// Asks for a stream with a deadline of one second.
pub async fn ask_for_a_second(caller: &mut Leg) {
    caller.say(&json!({"type": "ask", "device": "lamp-1", "service": "ssh", "deadline_s": 1})).await;
}
