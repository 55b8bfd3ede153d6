"""Every key and channel in the store. Nothing else in the project spells one.

| key | type | holds | written by | read by | ends |
|---|---|---|---|---|---|
| kw:job:{job} | hash | the job record (fields: see lua/prelude.lua) | admit, claim, append, finish, release, end_unclaimed, hand_over, leave, answered, outbox_settle | app, workers, controller | retention after the end |
| kw:stream:{job} | stream | numbered events, id `0-<seq>`, field `e` = JSON | append, finish, end_unclaimed, answered | app, workers (resume) | retention after the end |
| kw:waiting:{model} | zset | queued jobs of a model; score = priority·10¹³ + created ms | admit, claim, release, end_unclaimed, hand_over, tend_line (orphans) | app (position), controller (depth, age) | when empty |
| kw:waiting-models | set | models that may have a non-empty kw:waiting | admit, release, hand_over; tend_line | controller, app | – |
| kw:queued | zset | all queued jobs; score = ms of the last wake-up sent | admit, claim, release, end_unclaimed, hand_over, rewake | admit (bound), controller | when empty |
| kw:running | zset | running jobs; score = ms at which the lease ends | claim, renew, finish, release, expired (orphans) | controller (rescue), metrics | when empty |
| kw:deadlines | zset | open jobs with a deadline; score = that ms | admit, finish, release, end_unclaimed | controller | when empty |
| kw:jobs | zset | ids of known jobs; score = created ms | admit, answered; trimmed by the controller | app (lists) | trimmed by age |
| kw:tagged:{tag} | zset | jobs with one pair of metadata, or of one batch (`tasks.attachments.tags`); score = created ms | admit; forget and response_forget remove | app (lists) | as kw:jobs, by age |
| kw:idempotency:{digest} | string | `<job> <body digest>` of an Idempotency-Key | admit, answered | admit | retention |
| kw:answer:{digest} | string | cached answer to the request of this digest: its numbered events, a line of JSON each | finish | admit | the model's cache ttl; evicted when unused for longest |
| kw:computing:{digest} | string | the job that was last admitted to compute that answer | admit | admit | 1 hour |
| kw:answers-used, kw:answers-expiry | zset | digests of cached answers; score = ms of the last use, ms of the end | finish; admit (use) | finish | with the answer, or at a later finish |
| kw:answer-bytes | hash | digest → bytes that its answer counts for | finish | finish | idem |
| kw:cache-counts | hash | `hit <model>`, `shared <model>`, `miss <model>` → requests; `evicted` → answers; `bytes` → of all answers | admit, finish | finish (bound), app (metrics) | – |
| kw:broken-attempts | hash | `<code> <model>` → attempts that broke so | release | app (metrics) | – |
| kw:dead | zset | dead letters: failed jobs whose request is not to blame, not requeued yet; score = ms of the end | release, end_unclaimed; admit (requeue) and the controller remove | app | dead retention, at most 1000 |
| kw:quarantine | hash | `prompt:<digest>` or `model:<id>` → `<since ms> <until ms> <Suspect JSON>` | release (prompts), controller (models) | admit, claim, app, controller | removed when over or lifted |
| kw:probation | hash | model of a runner → the job that is being tried, so that it is known whom its runner's end is owed to | claim | claim, release | overwritten |
| kw:worker-losses | zset | `<model> <worker> <ms since it was busy>` of vanished workers; score = ms of the loss | release (rescue), controller | controller | 10 minutes |
| kw:service | hash | model id → `<mean run ms> <jobs> <ms of the newest>` of its succeeded jobs | finish | app (forecasts), controller (quarantine) | – |
| kw:batch:{batch} | hash | a batch: state, `<state>_at` ms, endpoint, input_file, created, expires, metadata, model, counts, errors (JSON), output_file, error_file; webhook; in_flight (`<lines> <bound>`); feeder, lease (ms), epoch (fence); breaks, broke_by, counts_at_break | app (create, cancel), feeders | app, feeders | file retention after the end |
| kw:batches | zset | ids of batches; score = created ms | app | app (lists) | cleaned when read |
| kw:batch-ends | hash | terminal state → batches that ended so | feeders | app (metrics) | – |
| kw:open-batches | zset | batches that have not ended; score = ms at which somebody must look whether they are fed | app, feeders, controller | feeders, controller, app | at the end |
| kw:outbox | zset | ids of jobs and batches whose end is to be told by a webhook; score = ms of the next try | finish, release, end_unclaimed, answered, batch_write; deliverers | deliverers, app (bound, metrics) | delivered, or given up |
| kw:outbox:{id} | hash | what is to be told: webhook, state, ended, created, metadata; of jobs model and event (End JSON), of batches counts, output_file, error_file; tries so far | idem | deliverers | idem |
| kw:dead-webhooks | zset | ids of jobs and batches whose webhook was given up; score = ms of that | deliverers | app (lists) | dead retention, at most 1000 |
| kw:dead-webhook-entries | hash | id → DeadWebhook JSON | deliverers | app (lists) | idem |
| kw:outbox-counts | hash | `delivered`, `failed <reason>`, `dead <reason>` → how many tries ended so | deliverers | app (metrics) | – |
| kw:response:{job} | hash | a response: response and echo (StoredResponse JSON), previous, retention (ms); state, model, created, finished, result, error when its job has ended. Or only linger (ms): nothing of it is kept | app; finish, release, end_unclaimed | app | response retention; a note with the job's end |
| kw:responses | zset | kept responses by their job's id; score = ms at which they end if their job ended at once | app | app (bound) | cleaned when written |
| kw:response-bytes | hash | job → bytes that its response counts for, `all` → their sum; `evicted` → responses that made room | app; finish, release, end_unclaimed, answered | app (bound, metrics) | – |
| kw:file:{file} | string | StoredFile JSON | app, feeders | app, feeders | deleted with the file |
| kw:files, kw:file-expiry | zset | ids of files; score = created ms, ms at which the content is deleted | app, feeders | app (lists), batchers (sweep) | idem |
| kw:file-bytes | string | bytes of all files that have a record | count_file | app (bound) | – |
| kw:files-swept | string | set for one period: expired files were looked for | controller | controller | the period |
| kw:workers | hash | worker id → WorkerReport JSON | workers' heartbeat | app, controller | removed with the worker |
| kw:workers-seen | zset | worker ids; score = ms of the last heartbeat | workers' heartbeat | app, controller | idem |
| kw:offers | hash | model id → last known ModelOffer JSON | workers' heartbeat | app | withdrawn, or not made for 10 minutes |
| kw:offers-seen | zset | model ids; score = ms of the last heartbeat that offered it | workers' heartbeat | controller | idem |
| kw:asks | hash | model id → `warm` or `evict`, asked for by an operator | app | controller (takes it) | when taken |
| kw:placement | string | desired Placement JSON, with its epoch | controller, fenced | workers, controller | – |
| kw:arrivals | hash | `<priority> <model>` → jobs admitted since the controller last looked | admit | controller (takes it) | when taken |
| kw:policy | string | PolicyState JSON: rates, buckets, failures that the policy remembers | controller, fenced | controller | – |
| kw:decisions | stream | the newest decisions, field `d` = Decision JSON | controller, fenced; worker, its own | app | at most about 2000 |
| kw:decision-counts | hash | `<action> <code>` → decisions of that kind so far | the same | app (metrics) | – |
| kw:loads | hash | `n <model>` → loads so far, `ms <model>` → what they took in all, `swap <model>` → the same with making room; `cold <model>` → jobs that found it cold | workers, app | app (metrics) | – |
| kw:leader | string | id of the leading controller | lead | lead, place | leader lease |
| kw:leader-epoch | string | counter of leaderships | lead | place | – |
| model.{model}, and this with `\\x06\\x16` and the priority | list | kombu's lists of the model's wake-ups, one for each priority | admit, `tasks.wakeups` | workers' pops | popped, or useless (tend_line) |
| worker.{worker} | list | kombu's list of the worker's private queue; an entry ends the worker's pop | a worker to itself | the worker's pop | 2 s |
| _kombu.binding.worker.{worker}, _kombu.binding_permanent.worker.{worker} | set | kombu's notes that the private queue exists | kombu, in a worker | kombu, where it sends | removed with the worker |

| channel | message | publisher → subscriber |
|---|---|---|
| kw:live:{job} | `<seq> <event JSON>`, seq 0 for a notice | append, claim, finish, workers → app |
| kw:hints:{worker} | `cancel <job>` or `placement` | app, controller → the worker; a hint only, the record is the truth |
"""

from __future__ import annotations

from tasks.jobs import JobId, WorkerId
from tasks.routing import worker_queue

WAITING_MODELS = "kw:waiting-models"
QUEUED = "kw:queued"
RUNNING = "kw:running"
DEADLINES = "kw:deadlines"
JOBS = "kw:jobs"
DEAD = "kw:dead"
ANSWERS_USED = "kw:answers-used"
ANSWERS_EXPIRY = "kw:answers-expiry"
ANSWER_BYTES = "kw:answer-bytes"
CACHE_COUNTS = "kw:cache-counts"
BROKEN_ATTEMPTS = "kw:broken-attempts"
QUARANTINE = "kw:quarantine"
PROBATION = "kw:probation"
WORKER_LOSSES = "kw:worker-losses"
SERVICE = "kw:service"
BATCHES = "kw:batches"
OPEN_BATCHES = "kw:open-batches"
BATCH_ENDS = "kw:batch-ends"
OUTBOX = "kw:outbox"
OUTBOX_COUNTS = "kw:outbox-counts"
DEAD_WEBHOOKS = "kw:dead-webhooks"
DEAD_WEBHOOK_ENTRIES = "kw:dead-webhook-entries"
RESPONSES = "kw:responses"
RESPONSE_BYTES = "kw:response-bytes"
FILES = "kw:files"
FILE_EXPIRY = "kw:file-expiry"
FILE_BYTES = "kw:file-bytes"
FILES_SWEPT = "kw:files-swept"
WORKERS = "kw:workers"
WORKERS_SEEN = "kw:workers-seen"
OFFERS = "kw:offers"
OFFERS_SEEN = "kw:offers-seen"
ASKS = "kw:asks"
PLACEMENT = "kw:placement"
ARRIVALS = "kw:arrivals"
POLICY = "kw:policy"
DECISIONS = "kw:decisions"
DECISION_COUNTS = "kw:decision-counts"
LOADS = "kw:loads"
LEADER = "kw:leader"
LEADER_EPOCH = "kw:leader-epoch"

LIVE_PREFIX = "kw:live:"
HINTS_PREFIX = "kw:hints:"


def job(job_id: JobId) -> str:
    return f"kw:job:{job_id}"


def stream(job_id: JobId) -> str:
    return f"kw:stream:{job_id}"


def live(job_id: JobId) -> str:
    return LIVE_PREFIX + job_id


def tagged(tag: str) -> str:
    return f"kw:tagged:{tag}"


def waiting(model: str) -> str:
    return f"kw:waiting:{model}"


def idempotency(digest: str) -> str:
    return f"kw:idempotency:{digest}"


def answer(digest: str) -> str:
    return f"kw:answer:{digest}"


def computing(digest: str) -> str:
    return f"kw:computing:{digest}"


def batch(batch_id: str) -> str:
    return f"kw:batch:{batch_id}"


def message(record_id: str) -> str:
    """Made so by the scripts, too."""
    return f"{OUTBOX}:{record_id}"


def response(job_id: JobId) -> str:
    return f"kw:response:{job_id}"


def file(file_id: str) -> str:
    return f"kw:file:{file_id}"


def queue_notes(worker_id: WorkerId) -> tuple[str, ...]:
    return tuple(f"_kombu.{kind}.{worker_queue(worker_id)}" for kind in ("binding", "binding_permanent"))


def hints(worker_id: WorkerId) -> str:
    return HINTS_PREFIX + worker_id
