import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI, { toFile } from 'openai';
import { CHAT_MODEL, EMBEDDING_MODEL, connect } from './keepwarm.mjs';

const client = connect();
const line = (id, body) =>
  JSON.stringify({ custom_id: id, method: 'POST', url: '/v1/chat/completions', body: { model: CHAT_MODEL, ...body } });

test('models are listed and found by name and alias', async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes(CHAT_MODEL) && ids.includes(EMBEDDING_MODEL));
  assert.equal((await client.models.retrieve(CHAT_MODEL)).object, 'model');
  assert.equal((await client.models.retrieve('gpt-3.5-turbo')).id, CHAT_MODEL);
});

test('a text is continued, whole and streamed, with log probabilities', async () => {
  const body = { model: CHAT_MODEL, prompt: 'Once upon a time', max_tokens: 12, temperature: 0 };
  const whole = await client.completions.create({ ...body, logprobs: 2 });
  assert.equal(whole.object, 'text_completion');
  assert.equal(whole.choices[0].logprobs.tokens.join(''), whole.choices[0].text);
  let text = '';
  for await (const chunk of await client.completions.create({ ...body, stream: true })) text += chunk.choices[0].text;
  assert.equal(text, whole.choices[0].text);
});

test('embeddings come as numbers, in the order of the texts, as long as asked', async () => {
  const input = ['the cat', 'the river', 'the cat'];
  const answer = await client.embeddings.create({ model: EMBEDDING_MODEL, input });
  assert.deepEqual(answer.data.map((each) => each.index), [0, 1, 2]);
  assert.deepEqual(answer.data[0].embedding, answer.data[2].embedding);
  const floats = await client.embeddings.create({ model: EMBEDDING_MODEL, input, encoding_format: 'float' });
  floats.data[1].embedding.forEach((x, i) => assert.ok(Math.abs(x - answer.data[1].embedding[i]) < 1e-6));
  const short = await client.embeddings.create({ model: EMBEDDING_MODEL, input: 'cat', dimensions: 8 });
  assert.equal(short.data[0].embedding.length, 8);
});

test('a file is uploaded, found, read and deleted', async () => {
  const content = line('a', { messages: [{ role: 'user', content: 'Hello' }] });
  const file = await client.files.create({ file: await toFile(Buffer.from(content), 'in.jsonl'), purpose: 'batch' });
  assert.equal(file.filename, 'in.jsonl');
  assert.equal((await client.files.waitForProcessing(file.id)).status, 'processed');
  assert.equal((await client.files.retrieve(file.id)).bytes, Buffer.byteLength(content));
  const ids = [];
  for await (const each of client.files.list({ purpose: 'batch', limit: 1 })) ids.push(each.id);
  assert.ok(ids.includes(file.id));
  assert.equal(await (await client.files.content(file.id)).text(), content);
  assert.equal((await client.files.delete(file.id)).deleted, true);
  await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
});

test('a batch answers every line, and says which could not be', async () => {
  const lines = [
    line('one', { messages: [{ role: 'user', content: 'Hello' }], max_tokens: 8 }),
    line('two', { messages: [{ role: 'user', content: 'Hello' }], temperature: 9 }),
  ].join('\n');
  const file = await client.files.create({ file: await toFile(Buffer.from(lines), 'in.jsonl'), purpose: 'batch' });
  let batch = await client.batches.create({
    input_file_id: file.id, endpoint: '/v1/chat/completions', completion_window: '24h', metadata: { from: 'node' },
  });
  assert.equal(batch.metadata.from, 'node');
  for (const until = Date.now() + 40_000; batch.status !== 'completed' && Date.now() < until; ) {
    await new Promise((wake) => setTimeout(wake, 200));
    batch = await client.batches.retrieve(batch.id);
  }
  assert.equal(batch.status, 'completed');
  assert.deepEqual(batch.request_counts, { total: 2, completed: 1, failed: 1 });
  const read = async (id) => JSON.parse(await (await client.files.content(id)).text());
  const done = await read(batch.output_file_id);
  assert.equal(done.custom_id, 'one');
  assert.equal(done.response.body.choices[0].message.role, 'assistant');
  assert.equal((await read(batch.error_file_id)).response.status_code, 400);
  const ids = [];
  for await (const each of client.batches.list({ limit: 1 })) ids.push(each.id);
  assert.ok(ids.includes(batch.id));
  await assert.rejects(client.batches.cancel(batch.id), OpenAI.ConflictError);
});

test('a batch is cancelled', async () => {
  const lines = Array.from({ length: 64 }, (_, index) =>
    line(`${index}`, { messages: [{ role: 'user', content: 'Hello' }], max_tokens: 400, ignore_eos: true }));
  const file = await client.files.create({ file: await toFile(Buffer.from(lines.join('\n')), 'in.jsonl'), purpose: 'batch' });
  const batch = await client.batches.create({ input_file_id: file.id, endpoint: '/v1/chat/completions', completion_window: '24h' });
  const cancelled = await client.batches.cancel(batch.id);
  assert.ok(['cancelling', 'cancelled'].includes(cancelled.status));
});
