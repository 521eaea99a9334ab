//go:build race

package cow_test

// raceDetector says that the tests were built with it.
const raceDetector = true
