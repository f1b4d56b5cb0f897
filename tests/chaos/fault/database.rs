//! A primary that is slow, whose commits do not last, whose clock was wrong, or whose claims are pruned early.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use futures::future::join_all;
use harness::amqp::AmqpClient;
use harness::expected::ExpectedCounts;
use harness::sql;
use serde_json::json;

use super::lifted::Lifted;
use crate::cluster::Cluster;

/// Delays each row of the counters by five milliseconds. One statement writes the rows of many messages.
const SLOW: &str = "\
create function be_slow() returns trigger language plpgsql as $$
    begin perform pg_sleep(0.005); return new; end $$;
create trigger be_slow before insert on domain_counters for each row execute function be_slow()";

const FAST: &str = "drop trigger be_slow on domain_counters; drop function be_slow()";

/// Messages, and domains in each. A message takes a twentieth of a second, a full prefetch of 100 takes five
/// seconds.
const MESSAGES: usize = 120;
const DOMAINS: usize = 10;

/// How long the primary is slow. In that time a session can write two hundred rows a second.
const SLOWNESS: Duration = Duration::from_secs(9);

/// The least percentage of rows that must be written while it is slow, to show that the workers make
/// progress. A fresh worker takes so few messages at first that some are in time whatever it does later, so
/// some rows must be written in the second half too.
const COUNTED_PERCENT: usize = 8;

/// A statement timeout that is shorter than a full batch takes.
const SHORT_TIMEOUT: [(&str, &str); 1] = [("CATCHALL_STATEMENT_TIMEOUT_SECS", "1")];

pub(super) async fn statement_timeout(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    cluster.stop_workers().await?;
    sql::execute(&cluster.primary, SLOW).await?;
    let mut expected = ExpectedCounts::default();
    let publisher = cluster.servers.publisher().await;
    let mut domains = Vec::new();
    for message in 0..MESSAGES {
        let names: Vec<String> =
            (0..DOMAINS).map(|number| format!("d{message}-{number}.{label}.test")).collect();
        let events: Vec<_> =
            names.iter().map(|domain| json!({"domain": domain, "event": "delivered"})).collect();
        let body = serde_json::to_vec(&events).expect("it is JSON");
        publisher.publish(&body, Some(&format!("{label}-{message}"))).await;
        for domain in &names {
            expected.expect(domain.clone(), 1, 1);
        }
        domains.extend(names);
    }
    cluster.start_workers_with(&SHORT_TIMEOUT).await;
    tokio::time::sleep(SLOWNESS / 2).await;
    let first_half = sql::counts(&cluster.primary, &domains).await?.len();
    tokio::time::sleep(SLOWNESS / 2).await;
    let counted = sql::counts(&cluster.primary, &domains).await?.len();
    sql::execute(&cluster.primary, FAST).await?;
    let mut lifted = Lifted { expected, ..Lifted::now() };
    let all = domains.len();
    let words = format!(
        "{counted} of {all} rows were written during the fault, {first_half} of them in its first half"
    );
    if counted * 100 < all * COUNTED_PERCENT || counted == first_half && counted < all {
        lifted.failures.push(words);
    } else {
        lifted.note = Some(words);
    }
    cluster.usual_workers().await?;
    Ok(lifted)
}

/// How long the primary does not wait for its disk: longer than the workers need to notice.
const UNSAFE: Duration = Duration::from_secs(5);

/// What is published meanwhile must be counted after it, and not before.
pub(super) async fn unsafe_commits(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    set_fsync(cluster, "off").await?;
    let publisher = cluster.servers.publisher().await;
    let expected = keyed(&publisher, label).await;
    tokio::time::sleep(UNSAFE).await;
    let counted = format!("select count(*) from domain_counters where domain like 'k%.{label}.test'");
    let counted = sql::number(&cluster.primary, &counted).await?;
    set_fsync(cluster, "on").await?;
    let mut lifted = Lifted { expected, ..Lifted::now() };
    if counted > 0 {
        lifted.failures.push(format!("{counted} messages were counted by commits that may not last"));
    }
    Ok(lifted)
}

async fn set_fsync(cluster: &Cluster, value: &str) -> Result<()> {
    sql::execute(&cluster.primary, &format!("alter system set fsync = {value}")).await?;
    sql::execute(&cluster.primary, "select pg_reload_conf()").await?;
    // Sessions hear of it soon after those that are new.
    let is_set = format!("select 'yes' where current_setting('fsync') = '{value}'");
    sql::until_row(&cluster.primary, &is_set, Duration::from_mins(1)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

/// Watermarks are sent every second, and claims are kept for an hour.
const WATCHFUL: [(&str, &str); 3] = [
    ("CATCHALL_MESSAGE_RETENTION_SECS", "3600"),
    ("CATCHALL_EVENT_RETENTION_SECS", "3600"),
    ("CATCHALL_ACK_DEADLINE_SECS", "24"),
];

/// Moves every time in the ledger three days ahead, including the horizon, as if the clock had been ahead.
const AHEAD: &str = "\
insert into pruned_claims (kind, used_before) values ('message', now()), ('event', now())
    on conflict do nothing;
do $$
declare c record;
begin
    for c in select table_name, column_name from information_schema.columns
        where table_schema = current_schema() and data_type = 'timestamp with time zone'
        and table_name in ('watermarks', 'pruned_claims', 'message_claims', 'event_claims')
    loop
        execute format('update %1$I set %2$I = %2$I + interval ''3 days''', c.table_name, c.column_name);
    end loop;
end $$";

/// How long the workers have for upkeep before the same events are sent again.
const UPKEEP: Duration = Duration::from_secs(5);

/// How many messages are sent: half have an id, the others have events with a key.
const KEYED: usize = 100;

pub(super) async fn clock_steps_back(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    cluster.stop_workers().await?;
    cluster.start_workers_with(&WATCHFUL).await;
    // One watermark must arrive before the clock is set back.
    let arrived = "select 'yes' from queue_progress";
    sql::until_row(&cluster.primary, arrived, Duration::from_mins(1)).await?;
    cluster.stop_workers().await?;
    sql::execute(&cluster.primary, AHEAD).await?;
    cluster.start_workers_with(&WATCHFUL).await;
    let stepped_back = Instant::now();
    let publisher = cluster.servers.publisher().await;
    let expected = keyed(&publisher, label).await;
    settled(&expected, cluster).await?;
    tokio::time::sleep(UPKEEP).await;
    keyed(&publisher, label).await;
    let mut lifted = Lifted { expected, ..Lifted::now() };
    // The clock is right again, so a watermark with the present time was begun after it was set back.
    let begun =
        "select 'yes' from watermarks where published_at between now() - interval '1 minute' and now()";
    if let Err(reason) = sql::until_row(&cluster.primary, begun, Duration::from_secs(5)).await {
        let since = stepped_back.elapsed();
        lifted.failures.push(format!("no watermark was sent within {since:?} of the step: {reason:#}"));
    }
    cluster.usual_workers().await?;
    Ok(lifted)
}

/// Claims are kept for five seconds, and a message is held for at most six.
const SHORT_RETENTION: [(&str, &str); 4] = [
    ("CATCHALL_MESSAGE_RETENTION_SECS", "5"),
    ("CATCHALL_EVENT_RETENTION_SECS", "5"),
    ("CATCHALL_ACK_DEADLINE_SECS", "6"),
    ("CATCHALL_STATEMENT_TIMEOUT_SECS", "2"),
];

/// The same events are sent once a second: for twice as long as claims are kept, and on until some are
/// pruned.
const AGAIN: Duration = Duration::from_secs(1);
const TIMES: usize = 11;
const MOST_TIMES: usize = 60;

pub(super) async fn short_retention(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    cluster.stop_workers().await?;
    let publisher = cluster.servers.publisher().await;
    let expected = keyed(&publisher, label).await;
    cluster.start_workers_with(&SHORT_RETENTION).await;
    let (mut times, mut pruned) = (0, 0.0);
    while times < TIMES || pruned == 0.0 && times < MOST_TIMES {
        tokio::time::sleep(AGAIN).await;
        keyed(&publisher, label).await;
        pruned = pruned_claims(cluster).await;
        times += 1;
    }
    let mut lifted = Lifted { expected, ..Lifted::now() };
    lifted.note = Some(format!("{pruned:.0} claims were pruned"));
    if pruned == 0.0 {
        lifted.failures.push("no claim was pruned".into());
    }
    cluster.usual_workers().await?;
    Ok(lifted)
}

/// Publishes messages of which every second one has an id, and the others an event with a key. Each counts
/// once.
async fn keyed(publisher: &AmqpClient, label: &str) -> ExpectedCounts {
    let mut expected = ExpectedCounts::default();
    let messages = (0..KEYED).map(|number| {
        let domain = format!("k{number}.{label}.test");
        expected.expect(domain.clone(), 1, 1);
        let name = format!("{label}-{number}");
        async move {
            if number % 2 == 0 {
                let event = json!({"domain": domain, "event": "delivered"});
                publisher.publish(event.to_string().as_bytes(), Some(&name)).await;
            } else {
                let event = json!({"domain": domain, "event": "delivered", "id": name});
                publisher.publish(event.to_string().as_bytes(), None).await;
            }
        }
    });
    let messages: Vec<_> = messages.collect();
    join_all(messages).await;
    expected
}

/// Waits until all events are counted.
async fn settled(expected: &ExpectedCounts, cluster: &Cluster) -> Result<()> {
    let difference = expected.compare(&cluster.primary, Duration::from_mins(1)).await?;
    if difference.lost == 0 { Ok(()) } else { Err(anyhow!("not counted within a minute: {difference:?}")) }
}

/// How many claims the workers have pruned since they were started.
async fn pruned_claims(cluster: &Cluster) -> f64 {
    let mut pruned = 0.0;
    for worker in &cluster.workers {
        pruned += worker.service.metric("catchall_worker_pruned_claims_total").await;
    }
    pruned
}
