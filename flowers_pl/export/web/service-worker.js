// Keeps the page's files, so that it works without a network; `export` fills in which, and a hash of them.
const PREFIX = `flowers_pl ${self.registration.scope} `;  // a host may have several models
const CACHE = PREFIX + "$VERSION";
const FILES = $FILES;
const INTEGRITY = $INTEGRITY;  // of those that must be of one export: a mixture is not kept, and is tried again

self.addEventListener("install", (event) => {
  const options = (file) => ({ cache: "no-cache", integrity: INTEGRITY[file] ?? "" });  // asks whether they changed
  const requests = FILES.map((file) => new Request(file, options(file)));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(requests)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const old = (names) => names.filter((name) => name.startsWith(PREFIX) && name !== CACHE);
  event.waitUntil(caches.keys().then((names) => Promise.all(old(names).map((name) => caches.delete(name))))
    .then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || !event.request.url.startsWith(self.registration.scope)) return;
  event.respondWith(caches.open(CACHE).then((cache) => cache.match(event.request, { ignoreSearch: true }))
    .then((kept) => kept ? unredirected(kept) : fetch(event.request)));
});

// Some hosts redirect index.html to ./, and browsers take no redirected response for a page.
function unredirected(kept) {
  return kept.redirected ? new Response(kept.body, kept) : kept;
}
