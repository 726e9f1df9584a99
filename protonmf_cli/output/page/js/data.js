/**
 * What the page shows, as data.py writes it. Classes and prototypes are named by their numbers; "base64" is of
 * little-endian numbers of the kind that is said.
 *
 * @typedef {[left: number, top: number, right: number, bottom: number]} Box  shares of width and height
 * @typedef {[red: number, green: number, blue: number]} Shade  of 0 to 255
 *
 * @typedef {object} PlaceMap  a map in one byte per place
 * @property {number} h
 * @property {number} w
 * @property {number} lo  what byte 0 stands for
 * @property {number} hi  what byte 255 stands for
 * @property {string} q  base64 of bytes
 *
 * @typedef {object} Links  connections of the listed classes, class by class
 * @property {string} start  int32: the first connection of each class, and their number
 * @property {string} prototype  int32
 * @property {string} weight  float32
 * @property {string | null} share  float32: of the residual, in augmented form
 * @property {Cosines | null} cosines  of models that read amounts
 *
 * @typedef {object} Cosines
 * @property {string} value  float64, in the order in which the classes first need them
 * @property {string} length  float64, of each prototype
 * @property {number} ridge
 *
 * @typedef {object} Fact  of a class in the gallery
 * @property {number} c
 * @property {number | null} images
 * @property {number | null} residual
 * @property {number | null} accuracy
 * @property {number | null} stability
 *
 * @typedef {[picture: number, box: Box, map: PlaceMap | null, score: number, path: string]} Patch
 *
 * @typedef {object} Prototype
 * @property {number} c  the class it is of
 * @property {number} n  its number there
 * @property {number} m  the network it is of
 * @property {string} network
 * @property {number | null} stability
 * @property {[low: number, high: number] | null} usual  amount
 * @property {number | null} full  usual amount at the strongest place
 * @property {[prototype: number, cosine: number][]} near
 * @property {[class_: number, weight: number][]} users
 * @property {[kind: string, words: string][]} signs
 * @property {string[]} facts
 * @property {string} [caption]  what it was named, with the score of the name
 * @property {Patch[] | null} patches  null where they were left out
 *
 * @typedef {object} Part  where a prototype is in an image
 * @property {Box} [box]
 * @property {PlaceMap} [presence]
 * @property {PlaceMap} [contribution]
 * @property {number} [unplaced]  of the contribution
 *
 * @typedef {object} Drawn  the maps of one class in an image
 * @property {number | null} share  of the residual
 * @property {number} error  what the rows and the network's own logit differ by
 * @property {PlaceMap | null} residual
 * @property {PlaceMap | null} codes
 * @property {Record<number, Part>} parts
 *
 * @typedef {object} Contrast  two logits on the same amounts
 * @property {[first: number, second: number]} of
 * @property {[prototype: number, amount: number, first: number, second: number][]} rows
 * @property {[count: number, first: number, second: number]} rest
 * @property {[first: number, second: number]} residual
 * @property {[first: number, second: number]} unplaced
 * @property {[first: number, second: number]} bias
 *
 * @typedef {{ j: number, evidence: number, weight: number, box: Box, map: PlaceMap }} Similar
 *
 * @typedef {object} Near
 * @property {[x: number, y: number]} place
 * @property {[path: string, name: string, distance: number][]} nearest
 * @property {number} typical
 *
 * @typedef {object} StoredCase  an explained image
 * @property {string} image
 * @property {number[]} pictures  what each network saw
 * @property {string} evidence  float64, of each prototype
 * @property {string | null} beside  float64
 * @property {string} logits  float32
 * @property {string | null} unplaced  float32, of the listed classes
 * @property {string | null} reach  float32, of each class
 * @property {string | null} besideReach  float32, of each class
 * @property {Contrast[]} contrasts
 * @property {number[]} targets  the true classes, where they are known
 * @property {number} top
 * @property {number} probability
 * @property {string | null} unlike  how usual the image is for the predicted class, in words
 * @property {number | null} first  the class to show first, where it is not `top`
 * @property {Record<number, Drawn>} drawn
 * @property {Similar[]} similar
 * @property {Near | null} near
 *
 * @typedef {object} Plane  training images and prototypes on two axes
 * @property {[x: number, y: number][]} samples
 * @property {number[]} labels
 * @property {[x: number, y: number][]} prototypes
 * @property {[x: number, y: number][]} means
 * @property {number[]} winners
 * @property {[first: number, second: number]} shares
 * @property {number[]} flagged
 *
 * @typedef {[hits: number, trials: number, low: number, high: number]} Share  with its interval
 *
 * @typedef {object} Transplant  shares of images of other classes that go to the prototype's class
 * @property {Share} flips
 * @property {Share} elsewhere
 * @property {Share} siblings
 * @property {Share} left
 * @property {Share} recoloured
 * @property {Share} recolouredLeft
 * @property {boolean} byColours  whether the images that are shown have its colours, not its patches
 *
 * @typedef {[before: number, after: number]} Change
 *
 * @typedef {object} Need  what is lost when a prototype is taken out
 * @property {Change} own  accuracy of the class
 * @property {Change} probability  mean, of the class on its own images
 * @property {Change} everything  accuracy of all images
 * @property {number} images  of the class
 * @property {Change | null} worst  accuracy of a group
 *
 * @typedef {{ path: string, target: number, before: number, after: number, pictures: [before: number, after: number] }}
 *   Pasted
 *
 * @typedef {object} Candidate  a prototype in the ranking
 * @property {number} j
 * @property {number} score
 * @property {boolean} shortcut  whether it looks like one
 * @property {string} reason
 * @property {Transplant | null} transplant
 * @property {Need | null} need
 * @property {number | null} outside  share of its maps outside the objects
 * @property {string[]} signs
 * @property {number[][]} [regions]  of each training patch the places of its map that are pasted; with pictures only
 * @property {Pasted[]} [pasted]  with pictures only
 *
 * @typedef {object} Audit
 * @property {number} images
 * @property {number} accuracy
 * @property {[name: string, images: number, accuracy: number][]} groups
 * @property {string[]} notes
 * @property {string[]} data  words of a command that name its images
 * @property {Candidate[]} ranked  all prototypes, the most suspicious first
 *
 * @typedef {object} Data
 * @property {string} schema
 * @property {string} file  of the model
 * @property {string} option  of the command
 * @property {boolean} nameless  no command can name the images
 * @property {boolean} multiLabel  whether an image may be of several classes
 * @property {string} measured
 * @property {number} floor  of the picture of all prototypes
 * @property {"sum" | "max" | "soft"} pooling
 * @property {string} evidence  what it means where there is no residual
 * @property {string[]} palette
 * @property {Shade[]} ramp
 * @property {Shade[]} diverging
 * @property {number} unstable  a stability below it is low
 * @property {[label: string, shown: string][]} classes
 * @property {Record<number, string>} words  for `--class`, where they are not the label
 * @property {string} bias  float32
 * @property {Links} links
 * @property {number[]} listed  the classes that there are rows of
 * @property {Fact[]} facts
 * @property {Record<number, number[]>} own  prototypes of a class
 * @property {Prototype[]} prototypes
 * @property {StoredCase[]} cases
 * @property {Plane | null} plane  of few-shot models
 * @property {Audit | null} audit
 * @property {string[]} pictures  base64 of JPEG files, or their names
 */

const data = /** @type {Data} */ (JSON.parse(document.getElementById("data")?.textContent ?? ""));
