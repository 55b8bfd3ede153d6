// The Keepwarm that the suite asks, as `python -m suites` hands it over.
import OpenAI from 'openai';

const { SUITE_URL, SUITE_CHAT_MODEL, SUITE_EMBEDDING_MODEL } = process.env;
if (!SUITE_URL) throw new Error('Run this with `make suites`: it starts the server that SUITE_URL names.');

export const CHAT_MODEL = SUITE_CHAT_MODEL;
export const EMBEDDING_MODEL = SUITE_EMBEDDING_MODEL;
export const HELLO = [{ role: 'user', content: 'Hello' }];

export function connect(options = {}) {
  return new OpenAI({ baseURL: `${SUITE_URL}/v1`, apiKey: 'none', maxRetries: 0, ...options });
}

/** Resolves with the job once its state is as wished; rejects after ten seconds. */
export async function jobIn(states, jobId) {
  for (const until = Date.now() + 10_000; ; ) {
    const job = await (await fetch(`${SUITE_URL}/v1/jobs/${jobId}?wait=2`)).json();
    if (states.includes(job.state)) return job;
    if (Date.now() > until) throw new Error(`job ${jobId} is ${job.state}, not ${states.join(' or ')}`);
  }
}

export async function numJobs() {
  return (await (await fetch(`${SUITE_URL}/v1/jobs?limit=1000`)).json()).data.length;
}
