//! The requests that a publisher has not answered yet.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use lapin::Confirmation;
use lapin::types::ShortString;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::message::Message;
use super::publish_request::{Outcomes, PublishError, PublishRequest};

/// A message that is to be published.
pub(super) struct Publish {
    pub(super) request: u64,
    pub(super) number: usize,
    pub(super) messages: Arc<[Message]>,
}

/// The broker's reply to one message.
pub(super) struct Confirm {
    pub(super) request: u64,
    pub(super) number: usize,
    pub(super) published: Instant,
    pub(super) reply: ConfirmOutcome,
}

/// The broker's reply to a message.
#[derive(Debug)]
pub(super) enum ConfirmOutcome {
    /// The message is on disk.
    Confirmed,
    /// The queue is at its limit.
    Refused,
    /// No queue takes the message with this id. It may be another message than the confirmed one.
    Returned(Option<ShortString>),
    /// No reply, and none will come.
    Lost(lapin::Error),
}

impl From<lapin::Result<Confirmation>> for ConfirmOutcome {
    fn from(confirmed: lapin::Result<Confirmation>) -> Self {
        match confirmed {
            Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) => {
                Self::Returned(message.properties.message_id().clone())
            }
            Ok(Confirmation::Ack(None)) => Self::Confirmed,
            Ok(Confirmation::Nack(None)) => Self::Refused,
            // Only a channel without confirms returns this.
            Ok(Confirmation::NotRequested) => Self::Lost(lapin::ErrorKind::InvalidChannel(0).into()),
            Err(error) => Self::Lost(error),
        }
    }
}

/// Why a connection cannot be used further.
pub(super) enum Broken {
    /// A message was returned, because no queue takes it.
    Returned,
    /// The connection or its channel is gone.
    Lost(lapin::Error),
}

/// The requests that have no answer yet, by number.
#[derive(Debug)]
pub(super) struct Pending {
    requests: BTreeMap<u64, Unanswered>,
    next: u64,
    /// Why nothing can be published at present.
    pub(super) reason: Arc<str>,
}

#[derive(Debug)]
struct Unanswered {
    messages: Arc<[Message]>,
    /// The outcome of each message, once it is known.
    outcomes: Vec<Option<Result<(), PublishError>>>,
    deadline: Instant,
    answer: oneshot::Sender<Outcomes>,
    /// Whether it was published over the present connection.
    sent: bool,
    /// Whether it was ever published.
    published: bool,
    /// Whether it was also published over an earlier connection, and may have been stored then.
    repeated: bool,
}

impl Default for Pending {
    fn default() -> Self {
        Self { requests: BTreeMap::new(), next: 0, reason: "not connected yet".into() }
    }
}

impl Pending {
    pub(super) fn add(&mut self, PublishRequest { messages, deadline, answer }: PublishRequest) {
        let outcomes = vec![None; messages.len()];
        let messages = messages.into();
        let (sent, published, repeated) = (false, false, false);
        let request = Unanswered { messages, outcomes, deadline, answer, sent, published, repeated };
        self.requests.insert(self.next, request);
        self.next += 1;
        self.answer_complete(self.next - 1);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.requests.values().map(|request| request.deadline).min()
    }

    /// Returns the messages to publish now. A request whose confirm is not expected before its deadline is
    /// refused unpublished, so that certainly none of it is counted.
    pub(super) fn send(&mut self, now: Instant, expected: Option<Duration>) -> Vec<Publish> {
        let mut publishes = Vec::new();
        let mut too_late = Vec::new();
        for (&number, unsent) in self.requests.iter_mut().filter(|(_, request)| !request.sent) {
            match expected {
                Some(expected) if !unsent.published && now + expected > unsent.deadline => {
                    too_late.push((number, expected));
                }
                _ => {
                    (unsent.repeated, unsent.sent, unsent.published) = (unsent.published, true, true);
                    let unknown = unsent.outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_none());
                    publishes.extend(unknown.map(|(message, _)| Publish {
                        request: number,
                        number: message,
                        messages: Arc::clone(&unsent.messages),
                    }));
                }
            }
        }
        for (number, expected) in too_late {
            let reason = format!("it takes {expected:.1?} to confirm, longer than this request may wait");
            self.answer(number, &PublishError::Unavailable(reason.into()));
        }
        publishes
    }

    /// Marks all messages without an outcome to be published over the next connection.
    pub(super) fn unsend(&mut self) {
        self.requests.values_mut().for_each(|request| request.sent = false);
    }

    /// Answers the requests whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        let late = self.requests.iter().filter(|(_, request)| request.deadline <= now);
        let late: Vec<(u64, bool)> = late.map(|(&number, request)| (number, request.published)).collect();
        for (number, published) in late {
            let error = if published {
                PublishError::Unconfirmed
            } else {
                PublishError::Unavailable(Arc::clone(&self.reason))
            };
            self.answer(number, &error);
        }
    }

    /// Records the confirms that have arrived.
    ///
    /// Lapin attaches a returned message to the next confirm, of whichever message, and the returned
    /// message's own confirm then looks like any other. But its own confirm never comes before the one with
    /// the return: when it arrives, the return is among the confirms that have arrived by then. So all of
    /// them are checked before one is trusted, and the first returned message ends the connection. Only if no
    /// other message was under way (`are_all`), it is clear which one was returned.
    pub(super) fn settle(&mut self, confirms: Vec<Confirm>, are_all: bool) -> Result<(), Broken> {
        let returned: HashSet<Option<ShortString>> = confirms
            .iter()
            .filter_map(|confirm| match &confirm.reply {
                ConfirmOutcome::Returned(id) => Some(id.clone()),
                _ => None,
            })
            .collect();
        let is_harmless = are_all && self.is_one_that_may_find_no_queue(&confirms);
        if !returned.is_empty() && !is_harmless {
            self.give_up(&returned);
            return Err(Broken::Returned);
        }
        let mut lost = None;
        for Confirm { request, number, reply, .. } in confirms {
            let outcome = match reply {
                ConfirmOutcome::Confirmed => Ok(()),
                ConfirmOutcome::Refused => Err(PublishError::Refused),
                ConfirmOutcome::Returned(_) => Err(PublishError::Unroutable),
                ConfirmOutcome::Lost(error) => {
                    lost = Some(error);
                    continue;
                }
            };
            // The request is gone if its deadline has passed.
            if let Some(unanswered) = self.requests.get_mut(&request) {
                unanswered.outcomes[number] = Some(outcome);
                self.answer_complete(request);
            }
        }
        lost.map_or(Ok(()), |error| Err(Broken::Lost(error)))
    }

    /// Whether this is the confirm of a single message that may find no queue.
    fn is_one_that_may_find_no_queue(&self, confirms: &[Confirm]) -> bool {
        let [confirm] = confirms else { return false };
        let request = self.requests.get(&confirm.request);
        request.is_some_and(|request| request.messages[confirm.number].may_find_no_queue())
    }

    /// Answers all requests published over a connection on which messages with these ids were returned. The
    /// outcome of the other messages is unknown.
    fn give_up(&mut self, returned: &HashSet<Option<ShortString>>) {
        let sent: Vec<u64> =
            self.requests.iter().filter(|(_, request)| request.sent).map(|(&number, _)| number).collect();
        for number in sent {
            let Some(request) = self.requests.get_mut(&number) else { continue };
            for (message, outcome) in request.messages.iter().zip(&mut request.outcomes) {
                let is_returned = message.id().is_some_and(|id| returned.contains(&Some(id.clone())));
                if is_returned && !request.repeated {
                    *outcome = Some(Err(PublishError::Unroutable));
                }
            }
            self.answer(number, &PublishError::Unconfirmed);
        }
    }

    fn answer_complete(&mut self, number: u64) {
        if self.requests.get(&number).is_some_and(|request| request.outcomes.iter().all(Option::is_some)) {
            self.answer(number, &PublishError::Unconfirmed);
        }
    }

    /// Answers a request; messages without an outcome get `unknown`.
    fn answer(&mut self, number: u64, unknown: &PublishError) {
        if let Some(Unanswered { outcomes, answer, .. }) = self.requests.remove(&number) {
            let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(unknown.clone())));
            // Sending fails if the caller no longer waits.
            let _ = answer.send(outcomes.collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::classified::{Classified, DomainReport};
    use crate::counters::{Counters, Status};
    use crate::domain_name::DomainName;
    use crate::idempotency_key::IdempotencyKey;
    use crate::position::Place;
    use crate::store::Change;
    use crate::utc_time::UtcTime;

    fn message(id: u128) -> Message {
        let id: IdempotencyKey = Uuid::from_u128(id).to_string().parse().unwrap();
        Message::events(b"[]".into(), Some(id))
    }

    /// Submits messages with these ids, with a deadline `secs` seconds from `now`.
    fn ask(pending: &mut Pending, ids: &[u128], secs: u64, now: Instant) -> oneshot::Receiver<Outcomes> {
        let (answer, outcomes) = oneshot::channel();
        let messages = ids.iter().map(|id| message(*id)).collect();
        pending.add(PublishRequest { messages, deadline: now + Duration::from_secs(secs), answer });
        outcomes
    }

    fn confirm(publish: &Publish, reply: ConfirmOutcome, now: Instant) -> Confirm {
        Confirm { request: publish.request, number: publish.number, published: now, reply }
    }

    fn lost() -> ConfirmOutcome {
        ConfirmOutcome::Lost(lapin::ErrorKind::InvalidChannel(1).into())
    }

    #[test]
    fn a_request_is_answered_once_all_its_messages_are() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        let mut outcomes = ask(&mut pending, &[1, 2], 5, now);
        let sent = pending.send(now, None);
        assert_eq!(sent.len(), 2);
        assert!(pending.send(now, None).is_empty(), "once");
        assert!(pending.settle(vec![confirm(&sent[1], ConfirmOutcome::Refused, now)], true).is_ok());
        assert!(outcomes.try_recv().is_err());
        assert!(pending.settle(vec![confirm(&sent[0], ConfirmOutcome::Confirmed, now)], true).is_ok());
        assert_eq!(outcomes.try_recv(), Ok(vec![Ok(()), Err(PublishError::Refused)]));
        assert_eq!(pending.next_deadline(), None);
        assert_eq!(ask(&mut pending, &[], 5, now).try_recv(), Ok(vec![]), "nothing is confirmed at once");
    }

    #[test]
    fn after_a_lost_connection_only_unconfirmed_messages_are_published_again() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        let mut outcomes = ask(&mut pending, &[1, 2, 3], 5, now);
        let sent = pending.send(now, None);
        let confirms =
            vec![confirm(&sent[0], ConfirmOutcome::Confirmed, now), confirm(&sent[1], lost(), now)];
        assert!(matches!(pending.settle(confirms, true), Err(Broken::Lost(_))));
        pending.unsend();
        // Published again however slow the broker is: the messages may have been counted, and only a confirm
        // can tell.
        let again = pending.send(now, Some(Duration::from_mins(1)));
        assert_eq!(again.iter().map(|publish| publish.number).collect::<Vec<_>>(), [1, 2]);
        pending.expire(now + Duration::from_secs(4));
        assert!(outcomes.try_recv().is_err());
        pending.expire(now + Duration::from_secs(5));
        let unknown = Err(PublishError::Unconfirmed);
        assert_eq!(outcomes.try_recv(), Ok(vec![Ok(()), unknown.clone(), unknown]));
        assert!(
            pending.settle(vec![confirm(&again[0], ConfirmOutcome::Confirmed, now)], true).is_ok(),
            "too late to matter"
        );
    }

    #[test]
    fn what_cannot_be_confirmed_in_time_is_refused_unpublished() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        let (mut short, mut long) = (ask(&mut pending, &[1], 2, now), ask(&mut pending, &[2], 4, now));
        let sent = pending.send(now, Some(Duration::from_secs(3)));
        assert_eq!(sent.iter().map(|publish| publish.request).collect::<Vec<_>>(), [1]);
        let refused = short.try_recv().unwrap().remove(0);
        assert!(matches!(refused, Err(PublishError::Unavailable(reason)) if reason.contains("3.0s")));
        assert!(pending.settle(vec![confirm(&sent[0], ConfirmOutcome::Confirmed, now)], true).is_ok());
        assert_eq!(long.try_recv(), Ok(vec![Ok(())]));
    }

    #[test]
    fn what_was_never_published_says_why() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        let mut outcomes = ask(&mut pending, &[1], 5, now);
        pending.reason = "connection refused".into();
        assert_eq!(pending.next_deadline(), Some(now + Duration::from_secs(5)));
        pending.expire(now + Duration::from_secs(6));
        let refused = outcomes.try_recv().unwrap().remove(0);
        assert_eq!(refused, Err(PublishError::Unavailable("connection refused".into())));
    }

    #[test]
    fn beside_a_returned_message_no_confirm_is_believed() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        let (mut one, mut other, mut third) = (
            ask(&mut pending, &[1], 5, now),
            ask(&mut pending, &[2], 5, now),
            ask(&mut pending, &[3], 5, now),
        );
        let sent = pending.send(now, None);
        // The message with id 1 is returned, and lapin attaches it to the confirm of another.
        let id = sent[0].messages[0].id().cloned();
        let confirms = vec![
            confirm(&sent[0], ConfirmOutcome::Confirmed, now),
            confirm(&sent[1], ConfirmOutcome::Returned(id), now),
        ];
        assert!(matches!(pending.settle(confirms, true), Err(Broken::Returned)));
        assert_eq!(one.try_recv(), Ok(vec![Err(PublishError::Unroutable)]));
        assert_eq!(other.try_recv(), Ok(vec![Err(PublishError::Unconfirmed)]));
        assert_eq!(third.try_recv(), Ok(vec![Err(PublishError::Unconfirmed)]));
    }

    #[test]
    fn a_returned_message_may_have_been_stored_when_it_was_published_before() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        let mut outcomes = ask(&mut pending, &[1], 5, now);
        let sent = pending.send(now, None);
        assert!(matches!(pending.settle(vec![confirm(&sent[0], lost(), now)], true), Err(Broken::Lost(_))));
        pending.unsend();
        let again = pending.send(now, None);
        let returned = ConfirmOutcome::Returned(again[0].messages[0].id().cloned());
        let settled = pending.settle(vec![confirm(&again[0], returned, now)], true);
        assert!(matches!(settled, Err(Broken::Returned)));
        assert_eq!(outcomes.try_recv(), Ok(vec![Err(PublishError::Unconfirmed)]));
    }

    #[test]
    fn a_change_that_no_queue_takes_ends_no_connection_if_it_is_under_way_alone() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        let known = Classified::noted(Counters::default(), Status::CatchAll, UtcTime(1));
        let domain: DomainName = "example.com".parse().unwrap();
        let change =
            Change { report: DomainReport::new(domain.clone(), known), place: Place::after(1, &domain) };
        let mut ask = || {
            let (answer, outcomes) = oneshot::channel();
            let messages = vec![Message::change(&change).mandatory()];
            pending.add(PublishRequest { messages, deadline: now + Duration::from_secs(5), answer });
            let sent = pending.send(now, None).remove(0);
            let returned = ConfirmOutcome::Returned(sent.messages[0].id().cloned());
            (outcomes, confirm(&sent, returned, now))
        };
        let ((mut alone, first), (mut beside, second)) = (ask(), ask());
        assert!(pending.settle(vec![first], true).is_ok());
        assert_eq!(alone.try_recv(), Ok(vec![Err(PublishError::Unroutable)]));
        // Another message is under way, and may be the one that was returned.
        assert!(matches!(pending.settle(vec![second], false), Err(Broken::Returned)));
        assert_eq!(beside.try_recv(), Ok(vec![Err(PublishError::Unroutable)]));
    }
}
