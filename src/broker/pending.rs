//! What a publisher was asked to publish and has not answered yet.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use lapin::Confirmation;
use lapin::types::ShortString;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::message::Message;
use super::publish_request::{Outcomes, PublishError, Request};

/// A message that is to be published.
pub(super) struct Publish {
    pub(super) request: u64,
    pub(super) number: usize,
    pub(super) messages: Arc<[Message]>,
}

/// What came of one message.
pub(super) struct Confirm {
    pub(super) request: u64,
    pub(super) number: usize,
    pub(super) published: Instant,
    pub(super) reply: Reply,
}

/// What the broker said of a message.
#[derive(Debug)]
pub(super) enum Reply {
    /// It is on disk.
    Confirmed,
    /// The queue is at its limit.
    Refused,
    /// It, or another one with this id, came back: no queue takes it.
    Returned(Option<ShortString>),
    /// Nothing, and it never will.
    Lost(lapin::Error),
}

impl From<lapin::Result<Confirmation>> for Reply {
    fn from(confirmed: lapin::Result<Confirmation>) -> Self {
        match confirmed {
            Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) => {
                Self::Returned(message.properties.message_id().clone())
            }
            Ok(Confirmation::Ack(None)) => Self::Confirmed,
            Ok(Confirmation::Nack(None)) => Self::Refused,
            // Only a channel that was never asked for confirms says so.
            Ok(Confirmation::NotRequested) => Self::Lost(lapin::ErrorKind::InvalidChannel(0).into()),
            Err(error) => Self::Lost(error),
        }
    }
}

/// Why a connection cannot be used further.
pub(super) enum Broken {
    /// A message came back, because no queue takes it.
    Returned,
    /// It, or its channel, is gone.
    Lost(lapin::Error),
}

/// The requests that have no answer yet, by number.
#[derive(Debug)]
pub(super) struct Pending {
    requests: BTreeMap<u64, Unanswered>,
    next: u64,
    /// Why nothing can be published, when nothing can.
    pub(super) reason: Arc<str>,
}

#[derive(Debug)]
struct Unanswered {
    messages: Arc<[Message]>,
    /// What became of each message, once that is known.
    outcomes: Vec<Option<Result<(), PublishError>>>,
    deadline: Instant,
    answer: oneshot::Sender<Outcomes>,
    /// Whether it was published over the present connection.
    sent: bool,
    /// Whether it was ever published.
    published: bool,
}

impl Default for Pending {
    fn default() -> Self {
        Self { requests: BTreeMap::new(), next: 0, reason: "not connected yet".into() }
    }
}

impl Pending {
    pub(super) fn add(&mut self, Request { messages, deadline, answer }: Request) {
        let outcomes = vec![None; messages.len()];
        let messages = messages.into();
        let request = Unanswered { messages, outcomes, deadline, answer, sent: false, published: false };
        self.requests.insert(self.next, request);
        self.next += 1;
        self.answer_complete(self.next - 1);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.requests.values().map(|request| request.deadline).min()
    }

    /// What is to be published now. A request that cannot be confirmed before its deadline, as confirms go, is refused
    /// instead: it is certain then that nothing of it was counted.
    pub(super) fn send(&mut self, now: Instant, expected: Option<Duration>) -> Vec<Publish> {
        let mut publishes = Vec::new();
        let mut too_late = Vec::new();
        for (&number, unsent) in self.requests.iter_mut().filter(|(_, request)| !request.sent) {
            match expected {
                Some(expected) if !unsent.published && now + expected > unsent.deadline => {
                    too_late.push((number, expected));
                }
                _ => {
                    (unsent.sent, unsent.published) = (true, true);
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
            let reason = format!("it takes {expected:.1?} to confirm, longer than this may wait");
            self.answer(number, &PublishError::Unavailable(reason.into()));
        }
        publishes
    }

    /// The connection is gone: what has no answer is published over the next one.
    pub(super) fn unsend(&mut self) {
        self.requests.values_mut().for_each(|request| request.sent = false);
    }

    /// Answers those whose time is over.
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

    /// Takes confirms that have come.
    ///
    /// Lapin hands a returned message to the confirm that comes next, whosever that is, and its own confirm then looks
    /// like any other. It never comes earlier, though: among the confirms that have come by then, or have come before,
    /// is the one with the returned message. So all are looked at before one is believed, and with the first returned
    /// message the connection ends.
    pub(super) fn settle(&mut self, confirms: Vec<Confirm>) -> Result<(), Broken> {
        let returned: HashSet<Option<ShortString>> = confirms
            .iter()
            .filter_map(|confirm| match &confirm.reply {
                Reply::Returned(id) => Some(id.clone()),
                _ => None,
            })
            .collect();
        if !returned.is_empty() {
            self.give_up(&returned);
            return Err(Broken::Returned);
        }
        let mut lost = None;
        for Confirm { request, number, reply, .. } in confirms {
            let outcome = match reply {
                Reply::Confirmed => Ok(()),
                Reply::Refused => Err(PublishError::Refused),
                Reply::Returned(_) => Err(PublishError::Unroutable),
                Reply::Lost(error) => {
                    lost = Some(error);
                    continue;
                }
            };
            // It is not there if its time was over before.
            if let Some(unanswered) = self.requests.get_mut(&request) {
                unanswered.outcomes[number] = Some(outcome);
                self.answer_complete(request);
            }
        }
        lost.map_or(Ok(()), |error| Err(Broken::Lost(error)))
    }

    /// Answers all that was published over a connection on which messages with these ids were returned. Of the others
    /// nothing is known.
    fn give_up(&mut self, returned: &HashSet<Option<ShortString>>) {
        let sent: Vec<u64> =
            self.requests.iter().filter(|(_, request)| request.sent).map(|(&number, _)| number).collect();
        for number in sent {
            let Some(request) = self.requests.get_mut(&number) else { continue };
            for (message, outcome) in request.messages.iter().zip(&mut request.outcomes) {
                if message.id().is_some_and(|id| returned.contains(&Some(id.clone()))) {
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

    /// Answers a request; `unknown` becomes of the messages that have no outcome.
    fn answer(&mut self, number: u64, unknown: &PublishError) {
        if let Some(Unanswered { outcomes, answer, .. }) = self.requests.remove(&number) {
            let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(unknown.clone())));
            // Nobody is left to hear it when its maker has gone.
            let _ = answer.send(outcomes.collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::idempotency_key::IdempotencyKey;

    fn message(id: u128) -> Message {
        let id: IdempotencyKey = Uuid::from_u128(id).to_string().parse().unwrap();
        Message::events(b"[]".into(), Some(id))
    }

    /// A request for messages with these ids, to be confirmed within so many seconds.
    fn ask(pending: &mut Pending, ids: &[u128], secs: u64, now: Instant) -> oneshot::Receiver<Outcomes> {
        let (answer, outcomes) = oneshot::channel();
        let messages = ids.iter().map(|id| message(*id)).collect();
        pending.add(Request { messages, deadline: now + Duration::from_secs(secs), answer });
        outcomes
    }

    fn confirm(publish: &Publish, reply: Reply, now: Instant) -> Confirm {
        Confirm { request: publish.request, number: publish.number, published: now, reply }
    }

    fn lost() -> Reply {
        Reply::Lost(lapin::ErrorKind::InvalidChannel(1).into())
    }

    #[test]
    fn a_request_is_answered_once_all_its_messages_are() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        let mut outcomes = ask(&mut pending, &[1, 2], 5, now);
        let sent = pending.send(now, None);
        assert_eq!(sent.len(), 2);
        assert!(pending.send(now, None).is_empty(), "once");
        assert!(pending.settle(vec![confirm(&sent[1], Reply::Refused, now)]).is_ok());
        assert!(outcomes.try_recv().is_err());
        assert!(pending.settle(vec![confirm(&sent[0], Reply::Confirmed, now)]).is_ok());
        assert_eq!(outcomes.try_recv(), Ok(vec![Ok(()), Err(PublishError::Refused)]));
        assert_eq!(pending.next_deadline(), None);
        assert_eq!(ask(&mut pending, &[], 5, now).try_recv(), Ok(vec![]), "nothing is confirmed at once");
    }

    #[test]
    fn what_a_connection_took_with_it_is_published_again_and_nothing_else() {
        let (now, mut pending) = (Instant::now(), Pending::default());
        let mut outcomes = ask(&mut pending, &[1, 2, 3], 5, now);
        let sent = pending.send(now, None);
        let confirms = vec![confirm(&sent[0], Reply::Confirmed, now), confirm(&sent[1], lost(), now)];
        assert!(matches!(pending.settle(confirms), Err(Broken::Lost(_))));
        pending.unsend();
        // However slow the broker is: it may have been counted, and only a confirm can tell.
        let again = pending.send(now, Some(Duration::from_mins(1)));
        assert_eq!(again.iter().map(|publish| publish.number).collect::<Vec<_>>(), [1, 2]);
        pending.expire(now + Duration::from_secs(4));
        assert!(outcomes.try_recv().is_err());
        pending.expire(now + Duration::from_secs(5));
        let unknown = Err(PublishError::Unconfirmed);
        assert_eq!(outcomes.try_recv(), Ok(vec![Ok(()), unknown.clone(), unknown]));
        assert!(
            pending.settle(vec![confirm(&again[0], Reply::Confirmed, now)]).is_ok(),
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
        assert!(pending.settle(vec![confirm(&sent[0], Reply::Confirmed, now)]).is_ok());
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
        // The message with the id 1 came back, and its return is handed to the confirm of another.
        let id = sent[0].messages[0].id().cloned();
        let confirms =
            vec![confirm(&sent[0], Reply::Confirmed, now), confirm(&sent[1], Reply::Returned(id), now)];
        assert!(matches!(pending.settle(confirms), Err(Broken::Returned)));
        assert_eq!(one.try_recv(), Ok(vec![Err(PublishError::Unroutable)]));
        assert_eq!(other.try_recv(), Ok(vec![Err(PublishError::Unconfirmed)]));
        assert_eq!(third.try_recv(), Ok(vec![Err(PublishError::Unconfirmed)]));
    }
}
