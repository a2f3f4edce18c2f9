//! Legs that are used again, against a scripted relay, with a paused clock.

use std::time::Duration;

use moorline_proto::bounds::IDLE_LEGS;
use moorline_proto::control::{Attempt, Cancel, CancelCode, FromDevice, GoAway, Offer, RejectCode};
use moorline_proto::leg::{DELIVERED_TEXT, END_TEXT};
use moorline_proto::reuse::{LegOffer, ReuseText};
use moorline_proto::text::Text;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::scripted::{
    Call, ScriptedRelay, Socket, agent, alongside, handler, leg_offer, offer, rejected, reuse_welcome, settings, welcome,
};
use crate::settings::Settings;

const SECOND: Attempt = Attempt::FIRST.next();

/// Waits until the handler's future is dropped, which is long before the deadline.
async fn dropped_at_once(call: Call) {
    let begun = Instant::now();
    call.dropped.await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

/// Opens a stream on a new leg.
async fn open_cold(relay: &mut ScriptedRelay, control: &mut Socket, calls: &mut Receiver<Call>, number: u32) -> (DuplexStream, Socket) {
    control.send(offer(number)).await;
    let program = calls.recv().await.unwrap().accept();
    let FromDevice::Accept(_) = control.next().await else { panic!("an accept") };
    let (mut leg, path) = relay.accept_reusable().await;
    assert_eq!(path, offer(number).url.as_str());
    leg.open(&offer(number)).await;
    (program, leg)
}

/// Ends the stream of a leg from both sides. The relay has not said what becomes of the leg.
async fn end(leg: &mut Socket, program: &mut DuplexStream) {
    leg.text(END_TEXT).await;
    assert_eq!(program.read_to_end(&mut Vec::new()).await.unwrap(), 0, "nothing is left to be read");
    program.shutdown().await.unwrap();
    let mut texts = [leg.next_message().await.unwrap(), leg.next_message().await.unwrap()].map(|text| text.to_string());
    texts.sort();
    assert_eq!(texts, [DELIVERED_TEXT, END_TEXT]);
    leg.text(DELIVERED_TEXT).await;
}

/// Ends the stream of a leg, which is idle then.
async fn finish(leg: &mut Socket, program: &mut DuplexStream) {
    end(leg, program).await;
    leg.idle().await;
    leg.ping().await;
}

/// A leg that is idle behind its first stream.
async fn idle_leg(relay: &mut ScriptedRelay, control: &mut Socket, calls: &mut Receiver<Call>) -> Socket {
    let (mut program, mut leg) = open_cold(relay, control, calls, 1).await;
    finish(&mut leg, &mut program).await;
    leg
}

async fn accepted(leg: &mut Socket, number: u32) {
    match leg.answer().await {
        ReuseText::Accept(accept) => assert_eq!(accept.stream, offer(number).stream),
        other => panic!("{other:?} instead of accept"),
    }
}

/// Offers a stream, which is accepted, and ends it.
async fn carry_one(leg: &mut Socket, calls: &mut Receiver<Call>, number: u32) {
    leg.offer(leg_offer(number)).await;
    let mut program = calls.recv().await.unwrap().accept();
    accepted(leg, number).await;
    finish(leg, &mut program).await;
}

#[tokio::test(start_paused = true)]
async fn a_leg_carries_one_stream_after_another_each_with_its_own_bytes() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let (mut control, hello) = relay.admit(reuse_welcome()).await;
        assert!(hello.features.iter().any(|feature| feature.as_str() == "reuse"));
        let mut leg = idle_leg(&mut relay, &mut control, &mut calls).await;
        for number in 2..5 {
            let (question, answer) = (format!("question {number}"), format!("answer {number}"));
            leg.offer(leg_offer(number)).await;
            leg.send_message(Message::binary(question.clone())).await;
            let call = calls.recv().await.unwrap();
            leg.text(END_TEXT).await;
            leg.ping().await;

            // What came before the target was connected is written to it, with its end.
            let mut program = call.accept();
            let mut received = String::new();
            program.read_to_string(&mut received).await.unwrap();
            assert_eq!(received, question);
            accepted(&mut leg, number).await;
            program.write_all(answer.as_bytes()).await.unwrap();
            drop(program);
            let mut sent: Vec<String> = Vec::new();
            for _ in 0..3 {
                sent.push(leg.next_message().await.unwrap().to_string());
            }
            sent.sort();
            assert_eq!(sent, [answer.as_str(), DELIVERED_TEXT, END_TEXT]);
            leg.text(DELIVERED_TEXT).await;
            leg.idle().await;
        }
        assert!(!relay.has_connections(), "one leg carried all of them");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_leg_is_used_again_behind_a_rejection() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let (mut control, _) = relay.admit(reuse_welcome()).await;
        let mut leg = idle_leg(&mut relay, &mut control, &mut calls).await;
        leg.offer(leg_offer(2)).await;
        leg.send_message(Message::binary("of the second")).await;
        calls.recv().await.unwrap().reject(RejectCode::TargetRefused);
        let reject = leg.rejected().await;
        assert_eq!((reject.stream, reject.code), (offer(2).stream, RejectCode::TargetRefused));
        leg.send_message(Message::binary("still of the second")).await;
        leg.idle().await;
        carry_one(&mut leg, &mut calls, 3).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_leg_whose_offer_is_cancelled_drops_the_target_and_is_used_again() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let (mut control, _) = relay.admit(reuse_welcome()).await;
        let mut leg = idle_leg(&mut relay, &mut control, &mut calls).await;
        leg.offer(leg_offer(2)).await;
        leg.send_message(Message::binary("early")).await;
        let call = calls.recv().await.unwrap();
        leg.text(ReuseText::from(Cancel { stream: offer(2).stream, code: CancelCode::CallerGone }).encode()).await;
        dropped_at_once(call).await;
        assert_eq!(leg.rejected().await.code, RejectCode::Internal);
        leg.idle().await;
        carry_one(&mut leg, &mut calls, 3).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_is_lost_while_the_target_is_dialled_drops_the_target_and_the_next_attempt_is_served() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let (mut control, _) = relay.admit(reuse_welcome()).await;
        for (is_closed, number) in [(false, 2), (true, 3)] {
            let mut leg = idle_leg(&mut relay, &mut control, &mut calls).await;
            leg.offer(leg_offer(number)).await;
            leg.send_message(Message::binary("early")).await;
            let call = calls.recv().await.unwrap();
            if is_closed {
                leg.close(4007, "superseded").await;
            }
            drop(leg);
            dropped_at_once(call).await;
            control.send(Offer { attempt: SECOND, ..offer(number) }).await;
            let mut program = calls.recv().await.unwrap().accept();
            let FromDevice::Accept(accept) = control.next().await else { panic!("an accept") };
            assert_eq!(accept.attempt, SECOND);
            let mut leg = relay.open_leg(&offer(number)).await;
            leg.send_message(Message::binary("early")).await;
            let mut received = [0; 5];
            program.read_exact(&mut received).await.unwrap();
            assert_eq!(&received, b"early");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_later_attempt_on_the_control_channel_replaces_one_on_a_leg_and_the_leg_is_closed() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let (mut control, _) = relay.admit(reuse_welcome()).await;
        let mut leg = idle_leg(&mut relay, &mut control, &mut calls).await;
        leg.offer(leg_offer(2)).await;
        let first = calls.recv().await.unwrap();
        control.send(Offer { attempt: SECOND, ..offer(2) }).await;
        let second = calls.recv().await.unwrap();
        let _leg_ahead = relay.accept_connection().await;
        dropped_at_once(first).await;
        assert_eq!(leg.closed().await, Some(4001));

        // The first attempt may come after the second, on a leg that was thought dead.
        let mut late = idle_leg(&mut relay, &mut control, &mut calls).await;
        late.offer(leg_offer(2)).await;
        assert_eq!(late.rejected().await.code, RejectCode::Internal);
        second.reject(RejectCode::Policy);
        assert_eq!(rejected(&mut control).await.attempt, SECOND);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn bytes_reach_a_target_once_whatever_the_relay_knows() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let (mut control, _) = relay.admit(reuse_welcome()).await;
        let mut leg = idle_leg(&mut relay, &mut control, &mut calls).await;
        leg.offer(leg_offer(2)).await;
        leg.send_message(Message::binary("once")).await;
        let mut program = calls.recv().await.unwrap().accept();
        let mut received = [0; 4];
        program.read_exact(&mut received).await.unwrap();
        let again = || Offer { attempt: SECOND, ..offer(2) };
        control.send(again()).await;
        let reject = rejected(&mut control).await;
        assert_eq!((reject.stream, reject.attempt, reject.code), (offer(2).stream, SECOND, RejectCode::Internal));
        drop(leg); // the accept was lost on the way
        assert_eq!(program.read(&mut received).await.unwrap(), 0, "the target is cut off");
        control.send(again()).await;
        assert_eq!(rejected(&mut control).await.code, RejectCode::Internal);
        tokio::time::sleep(Duration::from_secs(60)).await;
        control.send(again()).await;
        calls.recv().await.unwrap().reject(RejectCode::Policy);
        assert_eq!(rejected(&mut control).await.code, RejectCode::Policy, "its deadline is over");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_legs_count_for_nothing_and_a_stream_on_a_leg_counts_as_any_other() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(Settings { max_streams: 1, ..settings() }, handler);
    alongside(agent, async {
        let (mut control, _) = relay.admit(reuse_welcome()).await;
        let mut first = idle_leg(&mut relay, &mut control, &mut calls).await;
        let mut second = idle_leg(&mut relay, &mut control, &mut calls).await;
        first.offer(leg_offer(3)).await;
        let mut program = calls.recv().await.unwrap().accept();
        accepted(&mut first, 3).await;
        second.offer(leg_offer(4)).await;
        assert_eq!(second.rejected().await.code, RejectCode::Busy);
        second.idle().await;
        control.send(offer(5)).await;
        assert_eq!(rejected(&mut control).await.code, RejectCode::Busy);
        finish(&mut first, &mut program).await;
        carry_one(&mut second, &mut calls, 6).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_more_than_64_legs_are_kept() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let (mut control, _) = relay.admit(reuse_welcome()).await;
        let mut open = Vec::new();
        for number in 0..=IDLE_LEGS {
            open.push(open_cold(&mut relay, &mut control, &mut calls, number).await);
        }
        for (program, leg) in &mut open {
            end(leg, program).await;
            leg.idle().await;
        }
        let (_, mut excess) = open.pop().unwrap();
        assert_eq!(excess.closed().await, Some(1000));
        let (_, mut kept) = open.pop().unwrap();
        carry_one(&mut kept, &mut calls, 100).await;
    })
    .await;
}

/// How the session of idle legs ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Lost,
    Superseded,
    Replaced,
    Retired,
}

#[tokio::test(start_paused = true)]
async fn idle_legs_are_closed_with_their_session() {
    for how in [End::Lost, End::Superseded, End::Replaced, End::Retired] {
        let (handler, mut calls) = handler();
        let (agent, mut relay) = agent(settings(), handler);
        let handle = agent.handle();
        let scenario = async {
            let (mut control, _) = relay.admit(reuse_welcome()).await;
            let mut leg = idle_leg(&mut relay, &mut control, &mut calls).await;
            let mut newer = None;
            match how {
                End::Lost => drop(control),
                End::Superseded => control.close(4007, "superseded 00112233445566778899aabbccddeeff").await,
                End::Replaced => {
                    control.send(GoAway { reconnect_in_ms: 100, reason: Text::truncated("bye") }).await;
                    newer = Some(relay.admit(reuse_welcome()).await);
                }
                End::Retired => handle.retire(),
            }
            let begun = Instant::now();
            assert_eq!(leg.closed().await, Some(1000), "{how:?}");
            assert_eq!(begun.elapsed(), Duration::ZERO, "{how:?}");
            drop(newer);
        };
        if how == End::Retired {
            let ((), ()) = tokio::join!(agent.run(std::future::pending()), scenario);
        } else {
            alongside(agent, scenario).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_comes_back_after_its_session_is_closed() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let (mut control, _) = relay.admit(reuse_welcome()).await;
        let (mut program, mut leg) = open_cold(&mut relay, &mut control, &mut calls, 1).await;
        drop(control);
        let (_control, _) = relay.admit(reuse_welcome()).await;
        end(&mut leg, &mut program).await;
        leg.idle().await;
        assert_eq!(leg.closed().await, Some(1000));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_undecided_offer_on_a_leg_is_dropped_with_its_session() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let (mut control, _) = relay.admit(reuse_welcome()).await;
        let mut leg = idle_leg(&mut relay, &mut control, &mut calls).await;
        leg.offer(leg_offer(2)).await;
        let call = calls.recv().await.unwrap();
        drop(control);
        dropped_at_once(call).await;
        assert_eq!(leg.closed().await, Some(4001));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_offer_on_a_leg_is_rejected_at_its_deadline() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(settings(), handler);
    alongside(agent, async {
        let (mut control, _) = relay.admit(reuse_welcome()).await;
        let mut leg = idle_leg(&mut relay, &mut control, &mut calls).await;
        leg.offer(LegOffer { expires_in_ms: 1_000, ..leg_offer(2) }).await;
        let call = calls.recv().await.unwrap();
        assert_eq!(leg.rejected().await.code, RejectCode::TargetTimeout);
        call.dropped.await.unwrap_err();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_knows_nothing_of_it_is_not_asked() {
    let (handler, mut calls) = handler();
    let (agent, mut relay) = agent(Settings { warm_legs: 3, ..settings() }, handler);
    alongside(agent, async {
        let (mut control, _) = relay.admit(welcome()).await;
        control.send(offer(1)).await;
        let mut program = calls.recv().await.unwrap().accept();
        let FromDevice::Accept(_) = control.next().await else { panic!("an accept") };
        let (mut leg, _, asks_reuse) = relay.upgrade(false).await;
        assert!(!asks_reuse);
        leg.open(&offer(1)).await;
        end(&mut leg, &mut program).await;
        leg.close(1000, "finished").await;
        assert_eq!(leg.closed().await, Some(1000));
        assert!(!relay.has_connections());
    })
    .await;
}
