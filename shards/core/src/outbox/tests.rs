//! The rules of the outbox by example, and its invariants for any interleaving.
#![allow(clippy::unwrap_used)]

use hashbrown::HashMap;
use proptest::prelude::*;

use super::*;

const MAX: usize = 100;

fn publication(channel: u32, offset: u64, policy: SlowPolicy) -> Class {
    keyed(channel, offset, policy, Priority::Normal, 0)
}

fn keyed(channel: u32, offset: u64, policy: SlowPolicy, priority: Priority, key: u64) -> Class {
    Class::Publication {
        channel,
        key_hash: key,
        offset,
        policy,
        priority,
        accepted_at: Duration::from_millis(offset),
    }
}

fn bytes(length: usize) -> Bytes {
    Bytes::from(vec![b'x'; length])
}

fn dropped(oldest: u32, superseded: u32, item_dropped: bool) -> PushResult {
    PushResult::Dropped { oldest, superseded, item_dropped }
}

fn push(outbox: &mut Outbox, channel: u32, offset: u64, policy: SlowPolicy) -> PushResult {
    outbox.push(bytes(40), publication(channel, offset, policy), MAX)
}

fn push_urgent(outbox: &mut Outbox, channel: u32, offset: u64, priority: Priority) {
    let class = keyed(channel, offset, SlowPolicy::Disconnect, priority, 0);
    assert_eq!(outbox.push(bytes(1), class, MAX), PushResult::Queued);
}

/// Items in order: `c` control, `channel:offset`, `channel:-from-to*count` for a loss.
fn check(outbox: &Outbox, expected: &str) {
    let items = outbox.0.iter().flat_map(|inner| &inner.items);
    let text: Vec<String> = items
        .map(|item| match item {
            Item::Data { class: Class::Control, .. } => "c".into(),
            Item::Data { class: Class::Publication { channel, offset, .. }, .. } => {
                format!("{channel}:{offset}")
            }
            Item::Lost { loss: Loss { channel, from_offset, to_offset, count }, .. } => {
                format!("{channel}:-{from_offset}-{to_offset}*{count}")
            }
        })
        .collect();
    assert_eq!(text.join(" "), expected);
}

fn gathered(outbox: &Outbox) -> Vec<u8> {
    let mut slices = [IoSlice::new(&[]); 64];
    let filled = outbox.gather(&mut slices);
    slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect()
}

#[test]
fn empty_is_a_pointer_and_no_heap() {
    assert_eq!(size_of::<Outbox>(), 8);
    let mut outbox = Outbox::new();
    assert!(outbox.is_empty());
    outbox.push_control(bytes(3), MAX);
    outbox.push_control(bytes(3), MAX);
    assert!(!outbox.is_empty());
    outbox.advance(6, &mut Spare::default(), |_| ());
    assert!(outbox.0.is_none());
    outbox.push_control(bytes(3), MAX);
    assert_eq!(outbox.clear(), 3);
    assert!(outbox.0.is_none());
    assert_eq!(push(&mut outbox, 1, 1, SlowPolicy::Disconnect), PushResult::Queued);
    outbox.clear();
    let too_long = publication(1, 1, SlowPolicy::Disconnect);
    assert_eq!(outbox.push(bytes(MAX + 1), too_long, MAX), PushResult::Overflow);
    assert!(outbox.0.is_none());
}

#[test]
fn gather_goes_on_inside_a_partially_sent_item() {
    let mut outbox = Outbox::new();
    for text in ["hello ", "there ", "", "world"] {
        outbox.push_control(Bytes::from_static(text.as_bytes()), MAX);
    }
    assert_eq!(gathered(&outbox), b"hello there world");
    let mut sent = 0;
    outbox.advance(8, &mut Spare::default(), |_| sent += 1);
    assert_eq!(sent, 1);
    assert_eq!(outbox.len_bytes(), 9);
    assert_eq!(gathered(&outbox), b"ere world");
    let mut one = [IoSlice::new(&[]); 1];
    assert_eq!(outbox.gather(&mut one), 1);
    assert_eq!(&*one[0], b"ere ");
    outbox.advance(9, &mut Spare::default(), |_| sent += 1);
    assert_eq!(sent, 4);
    assert!(outbox.is_empty());
}

#[test]
fn sent_items_are_named() {
    let mut outbox = Outbox::new();
    outbox.push_control(bytes(10), MAX);
    push(&mut outbox, 3, 7, SlowPolicy::Disconnect);
    let mut sent = Vec::new();
    outbox.advance(50, &mut Spare::default(), |class| sent.push(class.clone()));
    assert_eq!(sent, [Class::Control, publication(3, 7, SlowPolicy::Disconnect)]);
}

#[test]
fn disconnect_overflows_and_changes_nothing() {
    let mut outbox = Outbox::new();
    push(&mut outbox, 1, 1, SlowPolicy::DropOldest);
    push(&mut outbox, 2, 1, SlowPolicy::Disconnect);
    assert_eq!(push(&mut outbox, 2, 2, SlowPolicy::Disconnect), PushResult::Overflow);
    check(&outbox, "1:1 2:1");
}

#[test]
fn control_may_pass_the_bound_but_not_the_hard_one() {
    let mut outbox = Outbox::new();
    assert_eq!(outbox.push(bytes(150), Class::Control, MAX), PushResult::Queued);
    assert_eq!(outbox.push(bytes(51), Class::Control, MAX), PushResult::Overflow);
    assert_eq!(outbox.push(bytes(50), Class::Control, MAX), PushResult::Queued);
    assert_eq!(push(&mut outbox, 1, 1, SlowPolicy::DropOldest), dropped(1, 0, true));
    check(&outbox, "c c 1:-1-1*1");
}

#[test]
fn drop_oldest_takes_its_own_channel_first() {
    let mut outbox = Outbox::new();
    push(&mut outbox, 1, 1, SlowPolicy::DropOldest);
    push(&mut outbox, 2, 1, SlowPolicy::DropOldest);
    assert_eq!(push(&mut outbox, 2, 2, SlowPolicy::DropOldest), dropped(1, 0, false));
    check(&outbox, "1:1 2:-1-1*1 2:2");
    assert_eq!(push(&mut outbox, 2, 3, SlowPolicy::DropOldest), dropped(1, 0, false));
    check(&outbox, "1:1 2:-1-2*2 2:3");
    assert_eq!(push(&mut outbox, 3, 1, SlowPolicy::DropOldest), dropped(1, 0, false));
    check(&outbox, "1:-1-1*1 2:-1-2*2 2:3 3:1");
}

#[test]
fn other_policies_are_left_alone() {
    let mut outbox = Outbox::new();
    push(&mut outbox, 1, 1, SlowPolicy::Disconnect);
    push(&mut outbox, 2, 1, SlowPolicy::KeepLatest);
    assert_eq!(push(&mut outbox, 3, 1, SlowPolicy::DropOldest), dropped(1, 0, true));
    check(&outbox, "1:1 2:1 3:-1-1*1");
    assert_eq!(push(&mut outbox, 3, 2, SlowPolicy::DropOldest), dropped(1, 0, true));
    check(&outbox, "1:1 2:1 3:-1-2*2");
}

#[test]
fn what_never_fits_drives_nothing_out() {
    let mut outbox = Outbox::new();
    push(&mut outbox, 1, 1, SlowPolicy::DropOldest);
    let class = publication(1, 2, SlowPolicy::DropOldest);
    assert_eq!(outbox.push(bytes(MAX + 1), class, MAX), dropped(1, 0, true));
    check(&outbox, "1:1 1:-2-2*1");
}

#[test]
fn keep_latest_supersedes_its_key_then_others_then_the_oldest() {
    let latest = |channel, offset, key| {
        keyed(channel, offset, SlowPolicy::KeepLatest, Priority::Normal, key)
    };
    let mut outbox = Outbox::new();
    for (offset, key) in [(1, 7), (2, 8), (3, 8), (4, 9)] {
        assert_eq!(outbox.push(bytes(25), latest(1, offset, key), MAX), PushResult::Queued);
    }
    assert_eq!(outbox.push(bytes(25), latest(1, 5, 7), MAX), dropped(0, 1, false));
    check(&outbox, "1:-1-1*1 1:2 1:3 1:4 1:5");
    assert_eq!(outbox.push(bytes(25), latest(2, 1, 7), MAX), dropped(0, 1, false));
    check(&outbox, "1:-1-2*2 1:3 1:4 1:5 2:1");
    assert_eq!(outbox.push(bytes(25), latest(2, 2, 6), MAX), dropped(1, 0, false));
    check(&outbox, "1:-1-2*2 1:3 1:4 1:5 2:-1-1*1 2:2");
}

#[test]
fn urgent_ones_pass_less_urgent_ones_of_other_channels_only() {
    let mut outbox = Outbox::new();
    push_urgent(&mut outbox, 1, 1, Priority::Normal);
    push_urgent(&mut outbox, 2, 1, Priority::Low);
    push_urgent(&mut outbox, 3, 1, Priority::High);
    check(&outbox, "3:1 1:1 2:1");
    push_urgent(&mut outbox, 2, 2, Priority::High);
    check(&outbox, "3:1 1:1 2:1 2:2");
    push_urgent(&mut outbox, 4, 1, Priority::Critical);
    check(&outbox, "4:1 3:1 1:1 2:1 2:2");
    outbox.push_control(bytes(1), MAX);
    push_urgent(&mut outbox, 1, 2, Priority::Normal);
    push_urgent(&mut outbox, 3, 2, Priority::High);
    push_urgent(&mut outbox, 5, 1, Priority::Critical);
    check(&outbox, "4:1 3:1 1:1 2:1 2:2 c 5:1 3:2 1:2");
}

#[test]
fn the_partially_sent_head_stays() {
    let mut outbox = Outbox::new();
    push(&mut outbox, 1, 1, SlowPolicy::DropOldest);
    push(&mut outbox, 1, 2, SlowPolicy::DropOldest);
    outbox.advance(1, &mut Spare::default(), |_| panic!("nothing was sent whole"));
    let urgent = keyed(2, 1, SlowPolicy::DropOldest, Priority::Critical, 0);
    assert_eq!(outbox.push(bytes(40), urgent, MAX), dropped(1, 0, false));
    check(&outbox, "1:1 2:1 1:-2-2*1");
}

#[test]
fn a_partially_sent_head_is_never_superseded() {
    let latest = |offset, key| keyed(1, offset, SlowPolicy::KeepLatest, Priority::Normal, key);
    for last_key in [7, 8] {
        let mut outbox = Outbox::new();
        outbox.push(bytes(40), latest(1, 7), MAX);
        outbox.push(bytes(40), latest(2, 7), MAX);
        outbox.advance(1, &mut Spare::default(), |_| panic!("nothing was sent whole"));
        let (oldest, superseded) = if last_key == 7 { (0, 1) } else { (1, 0) };
        let result = outbox.push(bytes(40), latest(3, last_key), MAX);
        assert_eq!(result, dropped(oldest, superseded, false));
        check(&outbox, "1:1 1:-2-2*1 1:3");
        assert_eq!(outbox.len_bytes(), 79);
    }
}

#[test]
fn a_marker_grows_until_its_first_byte_is_sent() {
    let encode = |loss: &Loss| Bytes::from(format!("{:02}", loss.count));
    let mut outbox = Outbox::new();
    push(&mut outbox, 1, 1, SlowPolicy::DropOldest);
    push(&mut outbox, 1, 2, SlowPolicy::DropOldest);
    push(&mut outbox, 1, 3, SlowPolicy::DropOldest);
    assert!(outbox.has_losses());
    assert!(gathered(&outbox).is_empty(), "nothing overtakes a loss that is not encoded");
    outbox.encode_losses(encode);
    assert!(!outbox.has_losses());
    assert_eq!(outbox.len_bytes(), 82);
    push(&mut outbox, 1, 4, SlowPolicy::DropOldest);
    assert!(outbox.has_losses());
    outbox.encode_losses(encode);
    check(&outbox, "1:-1-2*2 1:3 1:4");
    assert!(gathered(&outbox).starts_with(b"02x"));
    outbox.advance(1, &mut Spare::default(), |_| panic!("nothing was sent whole"));
    push(&mut outbox, 1, 5, SlowPolicy::DropOldest);
    check(&outbox, "1:-1-2*2 1:-3-3*1 1:4 1:5");
    outbox.encode_losses(encode);
    let mut sent = Vec::new();
    outbox.advance(3, &mut Spare::default(), |class| sent.push(class.clone()));
    assert_eq!(sent, [Class::Control, Class::Control]);
    check(&outbox, "1:4 1:5");
}

#[derive(Clone, Debug)]
enum Step {
    Publish { channel: u32, length: usize, key: u64, priority: Priority },
    Control { length: usize },
    Send { share: usize },
    Encode,
}

fn step() -> impl Strategy<Value = Step> {
    let priority = prop_oneof![
        Just(Priority::Low),
        Just(Priority::Normal),
        Just(Priority::High),
        Just(Priority::Critical)
    ];
    prop_oneof![
        8 => (0u32..6, 0usize..60, 0u64..4, priority)
            .prop_map(|(channel, length, key, priority)| Step::Publish { channel, length, key, priority }),
        2 => (0usize..30).prop_map(|length| Step::Control { length }),
        2 => (0usize..=100).prop_map(|share| Step::Send { share }),
        1 => Just(Step::Encode),
    ]
}

/// What the client has been told of one channel.
#[derive(Debug, Default)]
struct Told {
    pushed: u64,
    /// Offset of the last publication or loss that was sent.
    upto: u64,
    accounted: u64,
}

const MARKER_BYTES: usize = 4;

/// Drives an outbox beside a list of what was sent.
#[derive(Default)]
struct Model {
    outbox: Outbox,
    channels: HashMap<u32, Told>,
    controls: (u64, u64),
    delivered: u64,
    lost: u64,
}

impl Model {
    fn policy(channel: u32) -> SlowPolicy {
        [SlowPolicy::DropOldest, SlowPolicy::KeepLatest, SlowPolicy::Disconnect]
            [channel as usize % 3]
    }

    fn publish(&mut self, channel: u32, length: usize, key: u64, priority: Priority) {
        let told = self.channels.entry(channel).or_default();
        let class = keyed(channel, told.pushed + 1, Self::policy(channel), priority, key);
        let before = self.outbox.len_bytes();
        let result = self.outbox.push(bytes(length), class, MAX);
        match result {
            PushResult::Overflow => {
                assert_eq!(Self::policy(channel), SlowPolicy::Disconnect);
                assert_eq!(self.outbox.len_bytes(), before);
                assert!(before + length > MAX);
                return;
            }
            PushResult::Queued => assert_eq!(self.outbox.len_bytes(), before + length),
            PushResult::Dropped { oldest, superseded, item_dropped } => {
                assert!(before + length > MAX);
                assert!(oldest + superseded > 0);
                assert!(item_dropped || self.outbox.len_bytes() <= MAX);
                self.lost += u64::from(oldest + superseded);
            }
        }
        assert!(self.outbox.len_bytes() <= MAX.max(before));
        told.pushed += 1;
    }

    /// Sends `share` percent; markers announce themselves when they are gone from the front of the queue.
    fn send(&mut self, share: usize) {
        self.outbox.encode_losses(|_| bytes(MARKER_BYTES));
        let losses: Vec<Loss> = self.losses();
        let length = self.outbox.len_bytes() * share / 100;
        let mut sent = Vec::new();
        let mut first_unsent = self.outbox.0.as_ref().map_or(0, |inner| inner.items.len());
        let order: Vec<Option<Loss>> = self
            .outbox
            .0
            .iter()
            .flat_map(|inner| &inner.items)
            .map(|item| if let Item::Lost { loss, .. } = item { Some(*loss) } else { None })
            .collect();
        self.outbox.advance(length, &mut Spare::default(), |class| sent.push(class.clone()));
        first_unsent -= self.outbox.0.as_ref().map_or(0, |inner| inner.items.len());
        assert_eq!(sent.len(), first_unsent);
        assert!(losses.len() >= self.losses().len());
        for (class, loss) in sent.iter().zip(order) {
            self.told(class, loss);
        }
    }

    fn told(&mut self, class: &Class, loss: Option<Loss>) {
        if let Some(loss) = loss {
            assert_eq!(*class, Class::Control);
            assert_eq!(u64::from(loss.count), loss.to_offset - loss.from_offset + 1);
            self.lost -= u64::from(loss.count);
            self.account(loss.channel, loss.from_offset, loss.to_offset);
        } else if let Class::Publication { channel, offset, .. } = class {
            self.delivered += 1;
            self.account(*channel, *offset, *offset);
        } else {
            self.controls.1 += 1;
        }
    }

    fn account(&mut self, channel: u32, from: u64, to: u64) {
        let told = self.channels.get_mut(&channel).unwrap();
        assert_eq!(from, told.upto + 1, "order and completeness in channel {channel}");
        told.upto = to;
        told.accounted += to - from + 1;
    }

    fn losses(&self) -> Vec<Loss> {
        let items = self.outbox.0.iter().flat_map(|inner| &inner.items);
        items
            .filter_map(|item| if let Item::Lost { loss, .. } = item { Some(*loss) } else { None })
            .collect()
    }

    /// Byte count, marker count and the bound on markers agree with the items.
    fn check(&self) {
        let Some(inner) = &self.outbox.0 else { return };
        assert!(!inner.items.is_empty());
        let total: usize = inner.items.iter().filter_map(Item::bytes).map(Bytes::len).sum();
        assert_eq!(inner.bytes + inner.sent, total);
        let unencoded = inner.items.iter().filter(|item| item.bytes().is_none()).count();
        assert_eq!(inner.losses as usize, unencoded);
        let mut last_was_marker: HashMap<u32, bool> = HashMap::new();
        for (index, item) in inner.items.iter().enumerate() {
            let Some(channel) = item.channel() else { continue };
            let marker = matches!(item, Item::Lost { .. });
            let head = index == 0 && inner.sent > 0;
            let previous = last_was_marker.insert(channel, marker && !head);
            assert!(!(marker && previous == Some(true)), "neighbouring markers are joined");
        }
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_silently_or_reordered(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Publish { channel, length, key, priority } => {
                    model.publish(channel, length, key, priority);
                }
                Step::Control { length } => {
                    if model.outbox.push_control(bytes(length), 2 * MAX) == PushResult::Queued {
                        model.controls.0 += 1;
                        prop_assert!(model.outbox.len_bytes() <= 2 * MAX);
                    }
                }
                Step::Send { share } => model.send(share),
                Step::Encode => model.outbox.encode_losses(|_| bytes(MARKER_BYTES)),
            }
            model.check();
        }
        model.send(100);
        prop_assert!(model.outbox.is_empty());
        prop_assert_eq!(model.controls.0, model.controls.1);
        prop_assert_eq!(model.lost, 0);
        for told in model.channels.values() {
            prop_assert_eq!(told.accounted, told.pushed);
        }
    }

    #[test]
    fn an_urgent_one_waits_for_its_betters_only(
        queue in prop::collection::vec((0u32..4, 0u8..5), 0..20),
        critical in any::<bool>(),
        started in any::<bool>(),
    ) {
        let mut outbox = Outbox::new();
        for (index, (channel, kind)) in queue.into_iter().enumerate() {
            let priority = match kind {
                0 => { outbox.push_control(bytes(2), 1000); continue; }
                1 => Priority::Low,
                2 => Priority::Normal,
                3 => Priority::High,
                _ => Priority::Critical,
            };
            let class = keyed(channel, index as u64 + 1, SlowPolicy::Disconnect, priority, 0);
            outbox.push(bytes(2), class, 1000);
        }
        if started && !outbox.is_empty() {
            outbox.advance(1, &mut Spare::default(), |_| ());
        }
        let priority = if critical { Priority::Critical } else { Priority::High };
        outbox.push(bytes(2), keyed(0, 100, SlowPolicy::Disconnect, priority, 0), 1000);
        let inner = outbox.0.as_ref().unwrap();
        let at = inner
            .items
            .iter()
            .position(|item| matches!(item, Item::Data { class: Class::Publication { offset: 100, .. }, .. }))
            .unwrap();
        prop_assert!(inner.sent == 0 || at > 0);
        for passed in inner.items.iter().skip(at + 1) {
            let Item::Data { class: Class::Publication { channel, priority: its, .. }, .. } = passed
            else { panic!("passed a control item") };
            prop_assert!(*channel != 0 && *its < priority);
        }
        // The item right in front is a reason to stand here.
        if at > usize::from(inner.sent > 0) {
            let Item::Data { class, .. } = &inner.items[at - 1] else { panic!("no losses here") };
            let blocks = match class {
                Class::Control => true,
                Class::Publication { channel, priority: its, .. } => *channel == 0 || *its >= priority,
            };
            prop_assert!(blocks);
        }
    }
}

/// What an emptied outbox gives away is as new for the next one, and a large one is not kept.
#[test]
fn memory_of_an_emptied_outbox_is_used_again() {
    let mut spare = Spare::default();
    let mut first = Outbox::new();
    first.prepare(&mut spare);
    assert!(first.is_empty(), "there was no memory to take");
    push(&mut first, 1, 1, SlowPolicy::KeepLatest);
    first.advance(40, &mut spare, |_| ());
    assert!(first.is_empty());
    assert_eq!(spare.0.len(), 1);
    let mut second = Outbox::new();
    second.prepare(&mut spare);
    assert!(spare.0.is_empty());
    assert_eq!(second.len_bytes(), 0);
    assert_eq!(push(&mut second, 2, 1, SlowPolicy::Disconnect), PushResult::Queued);
    assert_eq!(second.len_bytes(), 40);
    let mut large = Outbox::new();
    for _ in 0..=SPARE_ITEMS_MAX {
        large.push_control(bytes(1), 1000);
    }
    large.advance(SPARE_ITEMS_MAX + 1, &mut spare, |_| ());
    assert!(large.is_empty() && spare.0.is_empty());
}
