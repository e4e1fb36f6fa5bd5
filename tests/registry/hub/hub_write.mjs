// What a JavaScript client writes and reads. Prints the outcome of each call as JSON.
import fs from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const { packages, hubUrl, folder, name } = JSON.parse(process.argv[2]);
const hub = await import(pathToFileURL(createRequire(`${packages}/package.json`).resolve("@huggingface/hub")));
const repo = { type: "model", name };
const given = { repo, hubUrl, accessToken: "hf_" + "a".repeat(37) };
const seen = {};

async function call(what, make) {
  try {
    seen[what] = (await make()) ?? "ok";
  } catch (error) {
    seen[what] = `${error.constructor.name}: ${error.message}`;
  }
}

const files = fs.readdirSync(folder).map((path) => ({ path, content: new Blob([fs.readFileSync(`${folder}/${path}`)]) }));
const long = { path: "long.txt", content: new Blob([Buffer.alloc(33 * 1024 * 1024 + 5, "lora ")]) };
await call("createRepo", async () => (await hub.createRepo(given)).id);
await call("uploadFile", async () => (await hub.uploadFile({ ...given, file: long })) && "ok");
await call("uploadFiles", async () => (await hub.uploadFiles({ ...given, files })) && "ok");
await call("deleteFile", async () => (await hub.deleteFile({ ...given, path: "long.txt" })) && "ok");
await call("modelInfo", async () => (await hub.modelInfo({ name, ...given })).name);
await call("createBranch", () => hub.createBranch({ ...given, branch: "b" }));
await call("deleteBranch", () => hub.deleteBranch({ ...given, branch: "b" }));
console.log(JSON.stringify(seen));
