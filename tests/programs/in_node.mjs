// node in_node.mjs FOLDER_OF_MODELS TASK MODEL OPTIONS IMAGE…: Transformers.js's pipeline in Node, a line of JSON per image.
// The module is resolved from the working directory, where npm installed it.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const require = createRequire(`${process.cwd()}/`);
const { env, pipeline } = await import(pathToFileURL(require.resolve('@huggingface/transformers')));
const [models, task, model, options, ...images] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = models;
const run = await pipeline(task, model, { device: 'cpu' });
for (const image of images) console.log(JSON.stringify(await run(image, JSON.parse(options))));
