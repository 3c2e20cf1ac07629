// Browsers start no worker for a page that was opened from a folder. There, the site's search runs in a hidden frame instead.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement('iframe')
      frame.hidden = true
      document.documentElement.appendChild(frame)
      const scope = frame.contentWindow
      this.ready = new Promise((resolve) => {
        scope.postMessage = (data) => this.dispatchEvent(new MessageEvent('message', { data }))
        scope.importScripts = (...urls) => Promise.all(urls.map((each) => this.load(scope, each)))
        this.load(scope, url).then(resolve)
      })
      this.scope = scope
    }
    load(scope, url) {
      return new Promise((resolve, reject) => {
        const script = scope.document.createElement('script')
        Object.assign(script, { src: new URL(url, location.href).href, onload: resolve, onerror: reject })
        scope.document.head.appendChild(script)
      })
    }
    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new MessageEvent('message', { data })))
    }
    terminate() {}
  }
}
