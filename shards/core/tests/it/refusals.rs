//! The control queue is full, now and then: what homes ask of the broker reaches it in the order in which they asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gateway_core::Output;
use gateway_core::broker::{BrokerOp, BrokerUpdate, ChannelUpdate, Snapshot};
use gateway_core::ids::{ConnectionId, SessionId, ShardId};
use gateway_core::message::{
    ChannelOp, ChannelRequest, ControlMessage, Epoch, HistoryQuery, Member, Origin, Publish,
    ShardMessage, StreamPosition, Subscribe,
};
use gateway_core::settings::BrokerSettings;
use proptest::prelude::*;

use crate::node::{Node, settings};

const CHANNELS: u32 = 2;

/// Something that happens to the shard.
#[derive(Clone, Copy, Debug)]
enum Step {
    Subscribe(u32, u32),
    Unsubscribe(u32, u32),
    History(u32),
    Publish(u32),
    /// The broker has answered an attach or a sync.
    Snapshot(u32),
    TellMembers(u32),
    /// Long enough for channels to be let go.
    Wait,
    /// The driver takes outputs in the middle of a turn.
    Take,
    /// A turn of the driver.
    Turn,
}

/// One shard, and a control queue that refuses when it is told to.
struct Driver {
    node: Node,
    /// Whether each message that is offered is refused; what comes after the last one is not.
    refusals: std::vec::IntoIter<bool>,
    /// What reached the broker, by channel.
    asked: BTreeMap<Arc<str>, Vec<String>>,
    publishes: usize,
}

impl Driver {
    fn new(refusals: Vec<bool>) -> Self {
        let mut settings = settings();
        settings.broker = Some(BrokerSettings { detach_delay: Duration::from_secs(30) });
        Self {
            node: Node::with(1, settings),
            refusals: refusals.into_iter(),
            asked: BTreeMap::new(),
            publishes: 0,
        }
    }

    fn tell(&mut self, message: ShardMessage) {
        let now = self.node.now;
        self.node.shards[0].handle_message(now, message);
    }

    fn request(&mut self, channel: u32, origin: Origin, op: ChannelOp) {
        let request = ChannelRequest { origin, channel: name(channel), op };
        self.tell(ShardMessage::Request(Box::new(request)));
    }

    fn update(&mut self, channel: u32, update: ChannelUpdate) {
        let update = BrokerUpdate::Channel(name(channel), update);
        self.tell(ShardMessage::Broker(Box::new(update)));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Subscribe(channel, client) => {
                let member = Member { user: "u".into(), session: SessionId::NONE, info: None };
                let subscribe = Subscribe { recover: None, member, compression: false };
                self.request(channel, origin(client), ChannelOp::Subscribe(subscribe));
            }
            Step::Unsubscribe(channel, client) => {
                let op = ChannelOp::Unsubscribe {
                    connection: connection(client),
                    last: true,
                    compression: false,
                };
                self.request(channel, origin(client), op);
            }
            Step::History(channel) => {
                let query = HistoryQuery { since: None, limit: 1, reverse: false };
                self.request(channel, Origin::Control(1), ChannelOp::History(query));
            }
            Step::Publish(channel) => {
                let op = ChannelOp::Publish(Publish::default());
                self.request(channel, Origin::Control(1), op);
            }
            Step::Snapshot(channel) => {
                let top = StreamPosition { offset: 0, epoch: Epoch(*b"epoch000") };
                let snapshot = Snapshot { top, publications: Vec::new(), server: 0, members: None };
                self.update(channel, ChannelUpdate::Snapshot(Box::new(snapshot)));
            }
            Step::TellMembers(channel) => self.update(channel, ChannelUpdate::TellMembers),
            Step::Wait => {
                for _ in 0..3 {
                    self.node.now.mono += Duration::from_secs(31);
                    self.node.shards[0].handle_deadline(self.node.now);
                }
            }
            Step::Take => self.take(),
            Step::Turn => self.turn(),
        }
    }

    fn take(&mut self) {
        while let Some(output) = self.node.shards[0].poll_output() {
            let Output::Control(message) = output else { continue };
            if self.refusals.next().unwrap_or(false) {
                let now = self.node.now;
                self.node.shards[0].handle_control_refused(now, message);
            } else if let ControlMessage::Broker(request) = message {
                if let BrokerOp::Publish { .. } = request.op {
                    self.publishes += 1;
                } else {
                    self.asked
                        .entry(request.channel)
                        .or_default()
                        .push(format!("{:?}", request.op));
                }
            }
        }
    }

    fn turn(&mut self) {
        self.node.shards[0].retry_backlog(self.node.now);
        self.take();
    }

    /// Turns until nothing waits any more.
    fn finish(mut self) -> (BTreeMap<Arc<str>, Vec<String>>, usize) {
        let mut turns = 0;
        self.turn();
        while self.node.shards[0].has_backlog() {
            self.turn();
            turns += 1;
            assert!(turns < 10_000, "something waits for ever");
        }
        (self.asked, self.publishes)
    }
}

fn name(channel: u32) -> Arc<str> {
    format!("chat:{channel}").into()
}

fn connection(client: u32) -> ConnectionId {
    ConnectionId::new(ShardId(0), client, 0)
}

fn origin(client: u32) -> Origin {
    Origin::Connection { id: connection(client), request: 1 }
}

fn run(steps: &[Step], refusals: Vec<bool>) -> (BTreeMap<Arc<str>, Vec<String>>, usize) {
    let mut driver = Driver::new(refusals);
    for step in steps {
        driver.step(*step);
    }
    driver.finish()
}

/// A channel is attached, has members, is let go and attached again. A full queue may meet any of the requests, or several.
#[test]
fn a_request_that_is_refused_keeps_its_place_whichever_it_is() {
    let mut steps = vec![
        Step::Subscribe(0, 1),
        Step::Take,
        Step::Snapshot(0),
        Step::Subscribe(0, 2),
        Step::Unsubscribe(0, 1),
        Step::Turn,
        Step::Unsubscribe(0, 2),
        Step::Wait,
        Step::Subscribe(0, 3),
        Step::Turn,
        Step::Snapshot(0),
        Step::TellMembers(0),
        Step::Unsubscribe(0, 3),
        Step::Turn,
    ];
    let (expected, _) = run(&steps, Vec::new());
    let kinds: Vec<&str> = expected[&name(0)]
        .iter()
        .map(|op| op.split(|c: char| !c.is_alphanumeric()).next().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "Attach", "Joined", "Joined", "Left", "Left", "Detach", "Attach", "Joined", "Members",
            "Left"
        ]
    );
    let offers = kinds.len() as u32 + 3;
    // Turns without news, in which what waits is offered again.
    steps.extend([Step::Turn; 3]);
    for mask in 0..1_u32 << offers {
        let refusals: Vec<bool> = (0..offers).map(|offer| mask & 1 << offer != 0).collect();
        assert_eq!(run(&steps, refusals).0, expected, "{mask:b}");
    }
}

#[test]
fn a_publish_does_not_wait_for_an_attach() {
    let steps = [Step::Subscribe(0, 1), Step::Turn, Step::Publish(0), Step::Take];
    let mut driver = Driver::new(vec![true]);
    for step in steps {
        driver.step(step);
    }
    assert_eq!((driver.publishes, driver.asked.len()), (1, 0));
    assert_eq!(driver.finish().0[&name(0)].len(), 1);
}

/// What waits is bounded: members that come and go meanwhile are told as a whole.
#[test]
fn members_that_come_and_go_are_told_as_they_are_then() {
    let mut driver = Driver::new(vec![false, true]);
    for step in [Step::Subscribe(0, 1), Step::Take, Step::Snapshot(0), Step::Take] {
        driver.step(step);
    }
    for _ in 0..20_000 {
        for step in [Step::Subscribe(0, 2), Step::Unsubscribe(0, 2), Step::Take] {
            driver.step(step);
        }
    }
    driver.step(Step::Subscribe(0, 3));
    let (asked, _) = driver.finish();
    let asked = &asked[&name(0)];
    assert!(asked.len() < 20_000, "{} were kept", asked.len());
    let last = asked.last().unwrap();
    let members = |client| last.contains(&format!("{:?}", connection(client)));
    assert!(last.starts_with("Members"), "{last}");
    assert_eq!([1, 2, 3].map(members), [true, false, true], "{last}");
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let channel = || 0..CHANNELS;
    let step = prop_oneof![
        3 => (channel(), 0..3_u32).prop_map(|(channel, client)| Step::Subscribe(channel, client)),
        3 => (channel(), 0..3_u32).prop_map(|(channel, client)| Step::Unsubscribe(channel, client)),
        1 => channel().prop_map(Step::History),
        1 => channel().prop_map(Step::Publish),
        3 => channel().prop_map(Step::Snapshot),
        1 => channel().prop_map(Step::TellMembers),
        1 => Just(Step::Wait),
        1 => Just(Step::Take),
        2 => Just(Step::Turn),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #[test]
    fn the_broker_hears_of_each_channel_in_order(
        steps in steps(),
        refusals in prop::collection::vec(any::<bool>(), 0..60),
    ) {
        let (expected, _) = run(&steps, Vec::new());
        prop_assert_eq!(run(&steps, refusals).0, expected);
    }
}
