import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';
import { CHAT_MODEL, EMBEDDING_MODEL, HELLO, connect, jobIn, numJobs } from './keepwarm.mjs';

const client = connect();
const LONG = { model: CHAT_MODEL, messages: HELLO, max_tokens: 3500, ignore_eos: true };

test('errors are of the class that their status has', async () => {
  const ask = (fields) => client.chat.completions.create({ model: CHAT_MODEL, messages: HELLO, ...fields });
  await assert.rejects(ask({ model: 'nobody' }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.deepEqual([error.code, error.param, error.type], ['model_not_found', 'model', 'invalid_request_error']);
    assert.ok(error.requestID);
    return true;
  });
  await assert.rejects(ask({ temperature: 7 }), (error) => error instanceof OpenAI.BadRequestError && error.param === 'temperature');
  await assert.rejects(ask({ messages: [] }), OpenAI.BadRequestError);
  await assert.rejects(ask({ model: EMBEDDING_MODEL }), OpenAI.BadRequestError);
  await assert.rejects(ask({ messages: [{ role: 'user', content: 'x'.repeat(9 * 1024 * 1024) }] }), { status: 413 });
  await assert.rejects(client.files.retrieve('file-none'), OpenAI.NotFoundError);
  await assert.rejects(client.batches.retrieve('batch_none'), OpenAI.NotFoundError);
  await assert.rejects(connect({ baseURL: 'http://127.0.0.1:9/v1' }).models.list(), OpenAI.APIConnectionError);
});

test('a prompt that is too long is refused and not tried again', async () => {
  const before = await numJobs();
  const patient = connect({ maxRetries: 2 });
  await assert.rejects(
    patient.chat.completions.create({ model: CHAT_MODEL, messages: [{ role: 'user', content: 'word '.repeat(9000) }] }),
    OpenAI.BadRequestError,
  );
  assert.equal((await numJobs()) - before, 1);
});

test('a request whose reply was lost is tried again, and one key is one job', async () => {
  const replies = [];
  const lossy = connect({
    maxRetries: 2,
    fetch: async (url, init) => {
      const reply = await fetch(url, init);
      replies.push(reply.headers.get('x-keepwarm-job'));
      if (replies.length === 1) throw new TypeError('the connection broke');
      return reply;
    },
  });
  const answer = await lossy.chat.completions.create(
    { model: CHAT_MODEL, messages: HELLO, max_tokens: 8 },
    { headers: { 'Idempotency-Key': crypto.randomUUID() } },
  );
  assert.equal(replies.length, 2);
  assert.equal(replies[0], replies[1]);
  assert.equal(answer.id, replies[0].replace('job_', 'chatcmpl-'));
});

test('an aborted stream ends, and its job is cancelled', async () => {
  const control = new AbortController();
  const { data: stream, response } = await client.chat.completions
    .create({ ...LONG, stream: true }, { signal: control.signal })
    .withResponse();
  let heard = 0;
  for await (const _ of stream) if (++heard === 3) control.abort();
  assert.ok(heard >= 3);
  assert.equal((await jobIn(['cancelled'], response.headers.get('x-keepwarm-job'))).state, 'cancelled');
});

test('leaving the loop over a stream cancels its job', async () => {
  const { data: stream, response } = await client.chat.completions.create({ ...LONG, stream: true }).withResponse();
  for await (const _ of stream) break;
  assert.equal((await jobIn(['cancelled'], response.headers.get('x-keepwarm-job'))).state, 'cancelled');
});

test('an aborted request for a whole answer is cancelled', async () => {
  const control = new AbortController();
  const newest = async () => (await (await fetch(`${process.env.SUITE_URL}/v1/jobs?limit=1`)).json()).data[0];
  const before = (await newest()).id;
  const asked = client.chat.completions.create(LONG, { signal: control.signal });
  asked.catch(() => {});
  let job = await newest();
  for (const until = Date.now() + 10_000; job.id === before && Date.now() < until; ) job = await newest();
  control.abort();
  await assert.rejects(asked, OpenAI.APIUserAbortError);
  assert.equal((await jobIn(['cancelled'], job.id)).state, 'cancelled');
});

test('a client that gives up says so', async () => {
  await assert.rejects(client.chat.completions.create(LONG, { timeout: 200 }), OpenAI.APIConnectionTimeoutError);
});
